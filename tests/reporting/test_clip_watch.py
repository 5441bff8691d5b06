"""When a run is warned that its gradients are clipped."""

from ospnext_ms.reporting.clip_watch import WINDOW, ClipWatch


def test_a_warning_where_most_steps_are_clipped_once_a_window():
    watch = ClipWatch()
    told = [watch({"clip_factor": 0.5 if i % 3 else 1.0, "clip_threshold": 0.25}) for i in range(3 * WINDOW)]
    assert [i for i, text in enumerate(told) if text] == [WINDOW - 1, 2 * WINDOW - 1, 3 * WINDOW - 1]
    assert told[WINDOW - 1].startswith("66 of the last 100 gradients were clipped, now to a norm of 0.25")


def test_silence_otherwise():
    watch = ClipWatch()
    assert not any(watch({"clip_factor": 0.5 if i % 2 else 1.0}) for i in range(3 * WINDOW))
    assert not any(watch({"eval_loss": 1.0}) for i in range(3 * WINDOW))
