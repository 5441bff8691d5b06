"""Moving average of weights."""

import contextlib

from mindspore import Parameter, ParameterTuple, nn, ops

from ospnext_ms.kernels.assign import add_in_place, assign_values
from ospnext_ms.training.chunks import in_chunks


class AverageChunk(nn.Cell):
    """Moves some averages, in place, by a share of their distance to the weights; returns the share."""

    def __init__(self, parameters, averages):
        super().__init__()
        self.parameters = ParameterTuple(parameters)
        self.averages = ParameterTuple(averages)
        self.map = ops.HyperMap()

    def construct(self, share):
        return ops.depend(share, self.map(ops.partial(_approach, share), self.averages, self.parameters))


def _approach(share, average, parameter):
    return add_in_place(average, share * (parameter - average))


class Ema:
    """Keeps average += (1 - decay) * (weight - average) for a list of parameters, in fp32 beside them.

    With `warm_up` the average is shorter at first: the decay of step n (from 0) is min(decay, (n + 1) / (n + 10)).

    Args:
        parameters: what is averaged; their values at this moment start the average.

    Attributes: parameters, averages; chunks, an AverageChunk for some of them each (see chunks.py), whose input is
    1 - decay as a scalar fp32 tensor (see `share`), so that it is not compiled in.
    """

    def __init__(self, parameters, decay, warm_up=False):
        self.parameters = tuple(parameters)
        self.averages = tuple(Parameter(parameter.value().copy(), name=f"ema.{parameter.name}", requires_grad=False)
                              for parameter in self.parameters)
        pairs = zip(in_chunks(self.parameters), in_chunks(self.averages), strict=True)
        self.chunks = [AverageChunk(*pair) for pair in pairs]
        self.decay = decay
        self.warm_up = warm_up

    def share(self, step):
        """1 - decay of a step counted from 0."""
        return 1 - (min(self.decay, (step + 1) / (step + 10)) if self.warm_up else self.decay)

    @contextlib.contextmanager
    def in_place(self):
        """Within the block the averages stand in the place of the weights, which come back bit by bit after it."""
        # By ops.assign: graphs that have run go on with the old values after Parameter.set_data.
        kept = [parameter.asnumpy().copy() for parameter in self.parameters]
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            assign_values(parameter, average.asnumpy())
        try:
            yield
        finally:
            for parameter, values in zip(self.parameters, kept, strict=True):
                assign_values(parameter, values)
