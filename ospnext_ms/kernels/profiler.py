"""MindSpore's profiler behind one call for every device."""

from pathlib import Path

from ospnext_ms.kernels.device import on_ascend

TRACE = "trace_view.json"


class Trace:
    """Records from now on what the host's operators and, on Ascend, the device do.

    Writes FOLDER/NAME_..._ascend_ms/ASCEND_PROFILER_OUTPUT/trace_view.json, in the form of Chrome's traces, which
    MindStudio Insight opens (on Ascend the folder with its further tables).

    Args:
        folder: made if it is not there. name: of whose trace it is, in the folder's name. steps: calls of `step` until
            it ends.
    """

    def __init__(self, folder, name, steps):
        from mindspore.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

        self._folder, self._name = Path(folder), name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._before = set(self._written())
        self._steps_left = steps
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.NPU] if on_ascend() else [])]
        # With a schedule it marks the steps, where it can, and ends with the last of them.
        self._profile = profile(
            activities=activities, schedule=schedule(wait=0, warmup=0, active=steps, repeat=1), start_profile=False,
            on_trace_ready=tensorboard_trace_handler(str(self._folder), name))
        self._profile.start()

    def step(self):
        """A step ends here."""
        self._profile.step()
        self._steps_left -= 1

    def stop(self):
        """Ends and writes it; the trace's path, None where the profiler wrote none (it raises nothing, but logs)."""
        if self._steps_left > 0:
            self._profile.stop()
        return next((path for path in self._written() if path not in self._before), None)

    def _written(self):
        return sorted(self._folder.glob(f"{self._name}_*/*/{TRACE}"))
