"""Evaluations of which some videos, or all, have no reward."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ospnext_ms.post_training.evaluation import Evaluation
from ospnext_ms.post_training.rewards.combined import Scores


class Told(list):
    """Stands in for a Monitor."""

    def record(self, done, figures):
        self.append(json.loads(json.dumps(figures, allow_nan=False)))

    say = list.append


def report(folder, iteration, total, parts, monitor):
    config = SimpleNamespace(evaluation=SimpleNamespace(count=4, videos=0), output_dir=folder,
                             video=SimpleNamespace(fps=8, crf=18))
    mesh = SimpleNamespace(data_size=1, data_rank=0)
    evaluation = Evaluation(config, ["a", "b", "c", "d"], mesh, None, None, None)
    failed = int(np.isnan(total).sum())
    scores = Scores(np.array(total), {"a": np.array(total), **parts}, {"a": failed}, ("it failed",) * bool(failed))
    evaluation._report(iteration, scores, [None] * 4, monitor)
    return json.loads((folder / "evaluation" / f"{iteration:06d}" / "scores.json").read_text(encoding="utf-8"),
                      parse_constant=pytest.fail)


def test_videos_without_a_reward_are_left_out_and_counted(tmp_path):
    told, nan = Told(), float("nan")
    report(tmp_path, 0, [1.0, 2.0, 3.0, nan], {"a/x": np.array([1.0, 1.0, nan, nan])}, told)
    record = report(tmp_path, 2, [2.0, 3.0, nan, 5.0], {"a/x": np.array([2.0, nan, 3.0, 4.0])}, told)
    assert record["total"] == [2.0, 3.0, None, 5.0]
    assert (told[0]["eval/reward"], told[0]["eval/a/x"], told[0]["eval/without_a_reward"]) == (2.0, 1.0, 1)
    # Pairs of which both are known.
    figures = next(item for item in told[1:] if isinstance(item, dict))
    assert figures["eval/rise"] == 1.0
    assert "eval/rise/a/x" not in figures
    assert told[1] == "iteration 0: held-out reward 2.0000 +- 0.5774"


def test_an_evaluation_without_any_reward_says_so_and_ends_nothing(tmp_path):
    told, nan = Told(), float("nan")
    report(tmp_path, 0, [nan] * 4, {}, told)
    assert told[0] == "no held-out video has a reward: it failed"
    assert (told[1]["eval/reward"], told[1]["eval/standard_error"]) == (None, None)
    assert told[2] == "iteration 0: held-out reward unknown"


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"total": "x", "parts": {}}', '{"total": [1], "parts": 3}', "[" * 10**5,
])
def test_scores_of_the_beginning_that_cannot_be_read_are_said(tmp_path, text):
    told = Told()
    first = tmp_path / "evaluation" / "000000" / "scores.json"
    first.parent.mkdir(parents=True)
    first.write_text(text)
    report(tmp_path, 2, [1.0, 2.0, 3.0, 4.0], {}, told)
    assert told[0].startswith(f"{first} cannot be read, so nothing is compared with it: ")
    assert (told[1]["eval/reward"], "eval/rise" in told[1]) == (2.5, False)
