"""Training steps that a GPU replays instead of running operator by operator."""

import torch


class RecordedStep:
    """Runs `update(*inputs)`, which computes gradients and steps the optimizer, and returns what it returns.

    On a GPU it is recorded as a CUDA graph once for each set of input shapes and then replayed: networks this small
    spend four fifths of an ordinary step on starting kernels. Random numbers must come from the default generator, and
    whatever changes between steps (the learning rate) must be a tensor on the device. The recording itself makes
    WARM_UP_STEPS ordinary updates.

    Args:
        update: function of tensors, returning a dict of tensors on the device.
        device: where it runs.
    """

    WARM_UP_STEPS = 3

    def __init__(self, update, device):
        self.update = update
        self.on_gpu = torch.device(device).type == "cuda"
        self.recordings = {}

    def __call__(self, *inputs):
        """One update; on a GPU the returned tensors are overwritten by the next one of the same shapes."""
        if not self.on_gpu:
            return self.update(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self.recordings:
            self.recordings[shapes] = self._record(inputs)
        graph, static_inputs, results = self.recordings[shapes]
        for static, tensor in zip(static_inputs, inputs, strict=True):
            static.copy_(tensor)
        graph.replay()
        return results

    def _record(self, inputs):
        static_inputs = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP_STEPS):
                self.update(*static_inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # On a stream of its own, whose scratch memory no other recording uses: several may be replayed at once.
        with torch.cuda.graph(graph, stream=stream):
            results = self.update(*static_inputs)
        return graph, static_inputs, results
