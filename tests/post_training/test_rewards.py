"""Rewards: what the built-in ones measure, and what happens when one goes wrong in its process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.config.post_train import RewardSection
from ospnext_ms.post_training.rewards.builtin import Exposure, MotionSmoothness, Sharpness
from ospnext_ms.post_training.rewards.combined import CombinedReward, Scores
from ospnext_ms.post_training.rewards.process import RewardError, RewardProcess
from tests.support.paths import ROOT

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 5, 8, 8, 3), dtype=np.uint8)
PROMPTS = ["a", "b", "c"]
SCORERS = "tests.post_training.scorers"


def moving_square(step, jitter=0, frames=9):
    """A bright square that moves `step` pixels a frame, every second frame `jitter` pixels aside."""
    video = np.zeros((1, frames, 64, 64, 3), np.uint8)
    for i in range(frames):
        left = 5 + step * i + jitter * (i % 2)
        video[0, i, 20:30, left : left + 10] = 255
    return video


def blurred_squares(size):
    import cv2

    video = moving_square(3)
    return np.stack([[cv2.GaussianBlur(frame, (0, 0), size) for frame in video[0]]])


def test_smooth_motion_beats_jitter():
    smooth, rough = (MotionSmoothness()(moving_square(3, jitter), ["x"])[0][0] for jitter in (0, 6))
    assert 0 < rough < smooth <= 1
    assert MotionSmoothness()(moving_square(0), ["x"])[0] == [1.0]


def test_a_darker_copy_is_as_smooth():
    """Or else a policy would be rewarded for turning down the light."""
    smoothness, video = MotionSmoothness(), moving_square(3, 6) // 2 * 2
    bright, dark = (smoothness(frames, ["x"])[0][0] for frames in (video, video // 2))
    assert bright == pytest.approx(dark, rel=1e-4)
    assert smoothness(0 * video, ["x"])[0] == [1.0]


def test_blur_costs_sharpness():
    sharpness = Sharpness(reference=30.0)
    scores = [sharpness(blurred_squares(size), ["x"])[0][0] for size in (1.0, 2.0, 5.0)]
    assert scores[0] > scores[1] > scores[2] > 0
    assert sharpness(moving_square(3), ["x"])[0] == [1.0]


def test_exposure_is_a_range():
    exposure, levels = Exposure(low=0.25, high=0.75), [0, 32, 64, 128, 191, 223, 255]
    scores = exposure(np.stack([np.full((2, 4, 4, 3), level, np.uint8) for level in levels]), ["x"] * 7)[0]
    assert scores[0] == 0
    assert scores[2:5] == [1, 1, 1]
    assert scores[6] == pytest.approx(0, abs=1e-6)
    assert 0 < scores[1] < 1
    assert 0 < scores[5] < 1


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MotionSmoothness(0), "tolerance is 0"), (lambda: Sharpness(-1), "reference is -1"),
    (lambda: Exposure(0.5, 0.2), "low is 0.5 and high 0.2"),
])
def test_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def faulty(how, retries=0, timeout=20.0, **arguments):
    return RewardProcess("test", f"{SCORERS}:Faulty", {"how": how, **arguments}, timeout=timeout, retries=retries)


def ask(process):
    try:
        return process.submit(FRAMES, PROMPTS).result()
    finally:
        process.close()


def test_scores_come_from_another_process():
    process = RewardProcess("level", f"{SCORERS}:Brightness", {})
    scores, parts = process.submit(FRAMES, PROMPTS).result()
    np.testing.assert_allclose(scores, FRAMES.reshape(3, -1).mean(1) / 255)
    assert list(parts) == ["level"]
    assert process._process.pid != os.getpid()
    process.close()


@pytest.mark.parametrize(("how", "message"), [
    ("raise", "it raised.*ZeroDivisionError: the reward's own mistake"),
    ("crash", "ended with signal SIGABRT"),
    ("short", "2 scores for 3 videos"),
    ("list", r"TypeError: it returned a list of 3; a scorer returns \(scores, parts\)"),
])
def test_faults_are_named(how, message):
    with pytest.raises(RewardError, match=rf"(?s)reward test \({SCORERS}:Faulty\) failed: .*{message}"):
        ask(faulty(how))


def test_a_hanging_reward_is_killed():
    process = faulty("hang", timeout=1.0)
    process.start()
    child, began = process._process, time.monotonic()
    with pytest.raises(RewardError, match="no answer within 1 s, its process was killed"):
        ask(process)
    assert time.monotonic() - began < 15
    assert child.poll() == -9


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def have_ended(*pids):
    """Whether processes are gone, within ten seconds."""
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(is_alive, pids))


@pytest.mark.parametrize(("how", "message"), [
    ("fork", "no answer within 2 s, its process was killed"), ("orphan", "ended with signal SIGABRT"),
    ("daemon", "ended with signal SIGABRT"),
])
def test_children_of_a_reward_keep_nobody_waiting(tmp_path, how, message):
    """A forked child holds the socket open, so that the death of the reward's process is no end of file."""
    process = faulty(how, timeout=2.0, counter=str(tmp_path / "count"))
    began = time.monotonic()
    with pytest.raises(RewardError, match=message):
        ask(process)
    assert time.monotonic() - began < 15
    child = int((tmp_path / "count.pid").read_text())
    if how == "daemon":
        os.kill(child, signal.SIGKILL)
    assert have_ended(child)


def test_a_reward_ends_with_a_trainer_that_is_killed(tmp_path):
    code = (f"from ospnext_ms.post_training.rewards.process import RewardProcess\nimport os, signal\n"
            f"p = RewardProcess('x', '{SCORERS}:Faulty', {{'how': 'fork', 'counter': {str(tmp_path / 'n')!r}}})\n"
            "import numpy as np\np.submit(np.zeros((1, 1, 8, 8, 3), np.uint8), ['a'])\n"
            f"import time, pathlib\nwhile not pathlib.Path({str(tmp_path / 'n.pid')!r}).exists(): time.sleep(0.05)\n"
            "print(p._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    pids = [int(done.stdout), int((tmp_path / "n.pid").read_text())]
    assert have_ended(*pids)


def test_it_is_tried_again_in_a_new_process(tmp_path):
    scores, _ = ask(faulty("crash", retries=1, counter=str(tmp_path / "count"), times=1))
    np.testing.assert_allclose(scores, FRAMES.reshape(3, -1).mean(1) / 255)


@pytest.mark.parametrize(("name", "arguments", "message"), [
    (f"{SCORERS}:Unmakeable", {}, "no weights in checkpoints/reward"),
    (f"{SCORERS}:Nothing", {}, "has no attribute 'Nothing'"),
    ("no_such_module:Reward", {}, "No module named 'no_such_module'"),
    (f"{SCORERS}:Brightness", {"level": 3}, "takes no arguments|unexpected keyword"),
])
def test_rewards_that_cannot_be_made(name, arguments, message):
    process = RewardProcess("test", name, arguments)
    with pytest.raises(RewardError, match=message):
        process.start()
    process.close()


def test_another_interpreter_that_is_not_there():
    process = RewardProcess("test", f"{SCORERS}:Brightness", {}, python="/nowhere/python")
    with pytest.raises(RewardError, match="/nowhere/python cannot be started"):
        process.start()
    process.close()


def section(name, weight, scorer="Brightness", on_failure="error", **arguments):
    return RewardSection(name=name, callable=f"{SCORERS}:{scorer}", weight=weight, arguments=arguments, retries=0,
                         on_failure=on_failure)


def combine(*sections):
    reward = CombinedReward(sections)
    try:
        return reward.submit(FRAMES, PROMPTS)()
    finally:
        reward.close()


def test_weights_and_parts():
    scores = combine(section("one", 2.0), section("guard", 0.0, "Faulty", how="constant"))
    level = FRAMES.reshape(3, -1).mean(1) / 255
    np.testing.assert_allclose(scores.total, 2 * level, rtol=1e-6)
    assert list(scores.parts) == ["one", "one/level", "guard", "guard/level"]
    np.testing.assert_allclose(scores.parts["guard"], 0.5)
    assert scores.failed == {"one": 0, "guard": 0}


def test_nan_is_an_error_or_a_counted_drop():
    with pytest.raises(RewardError, match=r"reward bad .* gave nan for the prompt 'a' and 1 of 3"):
        combine(section("bad", 1.0, "Faulty", how="nan"))
    scores = combine(section("one", 1.0), section("bad", 1.0, "Faulty", "drop", how="nan"))
    assert np.isnan(scores.total).tolist() == [True, False, False]
    assert scores.failed == {"one": 0, "bad": 1}


def test_a_failing_reward_is_an_error_or_a_counted_drop():
    with pytest.raises(RewardError, match="the reward's own mistake"):
        combine(section("bad", 1.0, "Faulty", how="raise"))
    scores = combine(section("one", 1.0), section("bad", 1.0, "Faulty", "drop", how="raise"))
    assert np.isnan(scores.total).all()
    assert scores.failed == {"one": 0, "bad": 3}
    assert "the reward's own mistake" in scores.messages[0]


def test_a_guard_that_fails_costs_no_video():
    scores = combine(section("one", 1.0), section("guard", 0.0, "Faulty", "drop", how="nan"))
    assert np.isfinite(scores.total).all()
    assert scores.failed["guard"] == 1


def test_batches_are_joined():
    first = Scores(np.array([1.0]), {"a": np.array([2.0])}, {"a": 1}, ("x",))
    joined = Scores.joined([first, Scores(np.array([3.0, 4.0]), {"a": np.array([5.0, 6.0])}, {"a": 0}, ())])
    assert joined.total.tolist() == [1, 3, 4]
    assert joined.parts["a"].tolist() == [2, 5, 6]
    assert joined.failed == {"a": 1}


def test_parts_of_a_batch_on_which_the_reward_failed_are_missing_not_left_out():
    failed = Scores(np.array([np.nan]), {"a": np.array([np.nan])}, {"a": 1}, ("x",))
    scored = Scores(np.array([3.0, 4.0]), {"a": np.array([5.0, 6.0]), "a/b": np.array([7.0, 8.0])}, {"a": 0}, ())
    np.testing.assert_array_equal(Scores.joined([failed, scored]).parts["a/b"], [np.nan, 7, 8])
