"""Moving average of weights."""

import contextlib

from mindspore import Parameter, ParameterTuple, nn, ops

from ospnext_ms.weights import assign_values


class Ema(nn.Cell):
    """Keeps average += (1 - decay) * (weight - average) for a list of parameters, in fp32 beside them.

    With `warm_up` the average is shorter at first: the decay of step n (from 0) is min(decay, (n + 1) / (n + 10)).

    Args:
        parameters: what is averaged; their values at this moment start the average.

    Inputs: share, a scalar fp32 tensor: 1 - decay, see `share`. It is a tensor so that it is not compiled in.
    """

    def __init__(self, parameters, decay, warm_up=False):
        super().__init__()
        self.parameters = ParameterTuple(list(parameters))
        self.averages = ParameterTuple([
            Parameter(parameter.value().copy(), name=f"ema.{parameter.name}", requires_grad=False)
            for parameter in self.parameters
        ])
        self.decay = decay
        self.warm_up = warm_up

    def share(self, step):
        """1 - decay of a step counted from 0."""
        return 1 - (min(self.decay, (step + 1) / (step + 10)) if self.warm_up else self.decay)

    def construct(self, share):
        for average, parameter in zip(self.averages, self.parameters):  # noqa: B905  (strict is no graph syntax)
            ops.assign_add(average, share * (parameter - average))
        return share

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
