"""Result files of VBench: upstream's, tables by hand, archives; and what they are refused for."""

import json
import zipfile

import pytest

from ospnext_ms.evaluation.vbench.results import few_videos, merge, read_results, write_archive


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def upstreams(score, videos=2):
    return [score, [{"video_path": f"v/{i}.mp4", "video_results": score} for i in range(videos)]]


def test_a_folder_as_upstream_leaves_it(tmp_path):
    write(tmp_path / "a_eval_results.json", {"scene": upstreams(0.25), "color": upstreams(0.5, 3)})
    write(tmp_path / "later" / "b_eval_results.json", {"human_action": upstreams(1.0)})
    write(tmp_path / "a_full_info.json", [{"prompt_en": "x"}])
    write(tmp_path / "records" / "scene.json", {"vbench": "0.1.5"})
    files = read_results(tmp_path)
    assert merge(files) == {"scene": 0.25, "color": 0.5, "human_action": 1.0}
    assert files[0].videos == {"scene": 2, "color": 3}
    assert merge(read_results(tmp_path / "a_eval_results.json")) == {"scene": 0.25, "color": 0.5}


@pytest.mark.parametrize(("scores", "unit", "expected"), [
    ({"scene": 0.25, "color": 1}, None, {"scene": 0.25, "color": 1.0}),
    ({"scene": 25, "color": 50.5, "multiple objects": 0}, None, {"scene": 0.25, "color": 0.505, "multiple_objects": 0}),
    ({"scene": 25, "color": 0.5}, "percent", {"scene": 0.25, "color": 0.005}),
    ({"note": "of a paper", "scene": 0.5}, None, {"scene": 0.5}),
])
def test_units_and_spellings(scores, unit, expected, tmp_path):
    assert merge(read_results(write(tmp_path / "t.json", scores), unit)) == pytest.approx(expected)


@pytest.mark.parametrize(("content", "message"), [
    ({"scene": 25, "color": 0.5}, r"scores above 1 \(scene 25\) and below \(color 0.5\); say .* --unit"),
    ({"scenery": 0.5}, "no dimension 'scenery'"),
    ({"scene": "half", "color": None}, "the score of color is null; expected a number"),
    ({"scene": True}, "the score of scene is true"),
    ({"scene": [0.5]}, "the score of scene is"),
    ({"scene": upstreams(0.5), "color": 0.5}, "mixes plain scores with upstream's"),
    ([{"prompt_en": "x"}], "not a result file of VBench"),
])
def test_what_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_results(write(tmp_path / "t.json", content))


def test_nan_is_refused(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"scene": [NaN, []]}')
    with pytest.raises(ValueError, match="NaN is not a number"):
        read_results(path)


def test_places_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no file \*_eval_results.json"):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="no results"):
        read_results(tmp_path / "nowhere")


def test_two_files_that_disagree(tmp_path):
    write(tmp_path / "a_eval_results.json", {"scene": upstreams(0.25)})
    write(tmp_path / "b_eval_results.json", {"scene": upstreams(0.25)})
    assert merge(read_results(tmp_path)) == {"scene": 0.25}
    write(tmp_path / "b_eval_results.json", {"scene": upstreams(0.5)})
    with pytest.raises(ValueError, match="a_eval_results.json and b_eval_results.json hold different scores of scene"):
        merge(read_results(tmp_path))


def test_scores_of_few_videos_are_told(tmp_path):
    write(tmp_path / "a_eval_results.json", {"scene": upstreams(0.25, 430), "color": upstreams(0.5, 3),
                                             "human_action": upstreams(0.5, 499)})
    assert few_videos(read_results(tmp_path)) == ["human action: 499 of 500 videos"]
    assert few_videos(read_results(write(tmp_path / "table.json", {"scene": 0.5}))) == []


def test_the_archive_of_the_leaderboard(tmp_path):
    """Its reader takes content[dimension][0] of every JSON object in the zip."""
    write(tmp_path / "r" / "a_eval_results.json", {"scene": upstreams(0.25)})
    write(tmp_path / "r" / "later" / "a_eval_results.json", {"color": upstreams(0.5)})
    archive = write_archive(tmp_path / "results.zip", read_results(tmp_path / "r"))
    read = {}
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            assert "/" not in name
            for dimension, value in json.loads(opened.read(name)).items():
                read[dimension] = value[0]
    assert read == {"scene": 0.25, "color": 0.5}
    assert merge(read_results(archive)) == read


def test_a_table_by_hand_makes_no_archive(tmp_path):
    files = read_results(write(tmp_path / "t.json", {"scene": 0.5}))
    with pytest.raises(ValueError, match="not a file that upstream's package wrote"):
        write_archive(tmp_path / "results.zip", files)
    assert not (tmp_path / "results.zip").exists()
