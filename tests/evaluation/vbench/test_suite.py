"""The suite: its texts, their videos and seeds, and the pairs of short and augmented prompts."""

import json

import pytest

from ospnext_ms.evaluation.vbench.suite import (
    Entry,
    pair_prompts,
    read_suite,
    suite_videos,
    unlike_pairs,
    videos_looked_up,
)

ENTRIES = [
    Entry("In a still frame, a stop sign", ("temporal_flickering",)),
    Entry("The bund Shanghai, oil painting", ("appearance_style",)),
    Entry("a fantasy landscape", ("overall_consistency", "aesthetic_quality")),
    Entry("A fantasy landscape", ("overall_consistency", "aesthetic_quality")),
    Entry("The bund Shanghai, oil painting", ("overall_consistency", "aesthetic_quality")),
]


def as_json(entries):
    return [{"prompt_en": entry.prompt, "dimension": list(entry.dimensions)} for entry in entries]


def write(path, lines):
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def test_a_suite_is_read(tmp_path):
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(as_json(ENTRIES)))
    assert read_suite(path) == ENTRIES


@pytest.mark.parametrize(("content", "message"), [
    ({"prompt_en": "x"}, "not a suite of VBench"),
    ([], "not a suite of VBench"),
    ([{"prompt_en": "x", "dimension": []}], "entry 1: expected a prompt_en and a list of dimensions"),
    ([{"prompt_en": "x", "dimension": ["scene"]}, {"dimension": ["scene"]}], "entry 2: expected a prompt_en"),
    ([{"prompt_en": "x", "dimension": ["scenery"]}], "no dimension 'scenery'"),
    ([{"prompt_en": "a/b", "dimension": ["scene"]}], "entry 1: upstream would look for a file .* 'a/b' cannot be"),
    ([{"prompt_en": "é" * 125, "dimension": ["scene"]}], "more than 255 bytes"),
])
def test_what_is_no_suite(content, message, tmp_path):
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_suite(path)
    with pytest.raises(FileNotFoundError, match="no file of the suite"):
        read_suite(tmp_path / "nowhere.json")


def test_every_text_once_and_case_counts():
    videos = suite_videos(ENTRIES, seed=666)
    assert len(videos) == 4 * 5
    assert len({video.name for video in videos}) == 20
    assert [video.name for video in videos[10:16]] == [
        *(f"a fantasy landscape-{i}" for i in range(5)), "A fantasy landscape-0"]
    assert videos[5].dimensions == ("appearance_style", "overall_consistency", "aesthetic_quality")


def test_seeds_differ_and_do_not_depend_on_what_else_is_made():
    everything = {video.name: video.seed for video in suite_videos(ENTRIES, seed=666)}
    assert len(set(everything.values())) == 20
    assert min(everything.values()) == 666
    some = suite_videos(ENTRIES, seed=666, dimensions=["overall_consistency"], samples=2)
    assert len(some) == 6
    assert all(everything[video.name] == video.seed for video in some)


def test_flickering_has_25_samples_when_asked_for_by_name():
    assert len(suite_videos(ENTRIES, 0, dimensions=["temporal_flickering"])) == 25
    assert len(suite_videos(ENTRIES, 0, dimensions=["temporal_flickering", "appearance_style"])) == 25 + 5
    assert len(suite_videos(ENTRIES, 0, dimensions=["temporal_flickering"], samples=7)) == 7
    with pytest.raises(ValueError, match="the suite has no prompt for scene"):
        suite_videos(ENTRIES, 0, dimensions=["scene"])


def test_names_that_upstream_looks_up():
    assert videos_looked_up(ENTRIES, "appearance_style") == [f"The bund Shanghai, oil painting-{i}.mp4"
                                                             for i in range(5)]
    made = {f"{video.name}.mp4" for video in suite_videos(ENTRIES, 0)}
    for name in ("temporal_flickering", "appearance_style", "overall_consistency", "aesthetic_quality"):
        assert set(videos_looked_up(ENTRIES, name)) <= made


def test_pairs_by_line(tmp_path):
    """A line may hold what other readers take for a line's end; with the suite's 5 entries or its 4 texts."""
    five = ["a red sign,\u2028still", "Shanghai in oil", "a land", "A Land", "Shanghai again"]
    pairs = pair_prompts(ENTRIES, write(tmp_path / "five.txt", five))
    assert list(pairs.values()) == five[:4]
    assert pair_prompts(ENTRIES, write(tmp_path / "four.txt", five[:4])) == pairs
    videos = suite_videos(ENTRIES, 0, pairs)
    assert (videos[5].text, videos[5].prompt) == ("Shanghai in oil", "The bund Shanghai, oil painting")


def test_pairs_with_a_list_of_short_prompts(tmp_path):
    order = [3, 2, 1, 0]
    short = write(tmp_path / "short.txt", [ENTRIES[i].prompt + " " for i in order])
    augmented = write(tmp_path / "augmented.txt", [f"augmented {i}" for i in order])
    pairs = pair_prompts(ENTRIES, augmented, short)
    assert list(pairs.values()) == ["augmented 0", "augmented 1", "augmented 2", "augmented 3"]


@pytest.mark.parametrize(("augmented", "short", "message"), [
    (["a"] * 3, None, "has 3 lines and the suite 5 entries of 4 prompts"),
    (["a", "", "b", "c"], None, "line 2 is empty"),
    (["a"] * 2, ["a fantasy landscape", "A fantasy landscape"], "has no line for 2 prompts of the suite, such as"),
    (["a"] * 2, ["a fantasy landscape"], "has 2 lines and .* 1 prompts"),
])
def test_pairs_that_do_not_fit(augmented, short, message, tmp_path):
    short = short and write(tmp_path / "short.txt", short)
    with pytest.raises(ValueError, match=message):
        pair_prompts(ENTRIES, write(tmp_path / "augmented.txt", augmented), short)


def test_pairs_that_look_shifted():
    assert unlike_pairs({"a red umbrella": "An umbrella, red as fire", "a cat": "a cat"}) == []
    assert unlike_pairs({"a red umbrella": "A black piano on a stage", "a piano": "A red umbrella"}) == [
        "a red umbrella", "a piano"]
