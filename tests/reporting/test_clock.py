"""What is left of a run."""

from ospnext_ms.reporting.clock import STEPS_OF_TRIALS, StepClock


def test_steps_that_try_threads_stay_out_of_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = StepClock(40, tries_threads=True)
    for step in range(40):
        now[0] += 8.0 if step < STEPS_OF_TRIALS else 1.0
        clock.tick()
        assert clock.seconds_left == (None if step < STEPS_OF_TRIALS else 39 - step)
