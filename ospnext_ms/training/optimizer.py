"""AdamW and learning-rate schedules of mindformers, set up for a list of parameters."""

import importlib
import itertools
import logging
import math
import os

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from ospnext_ms.kernels.adamw import adamw_update
from ospnext_ms.kernels.device import on_ascend
from ospnext_ms.training.chunks import in_chunks

UNDECAYED = ("norm", "bias", "modulation")


def load_mindformers(log_folder="output/mindformers"):
    """The package mindformers, whose import takes seconds. `log_folder` is where its first import puts its logs."""
    os.environ.setdefault("LOCAL_DEFAULT_PATH", str(log_folder))
    disabled = logging.root.manager.disable
    # It warns of models of its own that need packages which are not there: nobody asked for them.
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("mindformers")
    finally:
        logging.disable(disabled)


def is_decayed(name):
    """False for parameters that weight decay would pull away from their meaning: norms, biases, modulation."""
    return not any(part in name for part in UNDECAYED)


def make_optimizer(parameters, *, betas, eps, weight_decay):
    """ChunkedAdamW of the parameters; its learning rate is set by `set_learning_rate`.

    Use the optimiser's own `parameters` for the order of gradients: they are grouped by decay.
    """
    load_mindformers()
    from mindformers.core.optim.adamw import AdamW

    def make_chunk(members):
        groups = [{"params": list(group), "weight_decay": weight_decay if decayed else 0.0}
                  for decayed, group in itertools.groupby(members, lambda parameter: is_decayed(parameter.name))]
        # 1e-3 stands in until the first step sets it.
        return AdamW(groups, learning_rate=1e-3, betas=tuple(betas), eps=eps, weight_decay=weight_decay)

    ordered = sorted(parameters, key=lambda parameter: not is_decayed(parameter.name))
    chunks = [make_chunk(members) for members in in_chunks(ordered)]
    if on_ascend():
        chunks = [FusedAdamW(chunk, betas, eps, weight_decay) for chunk in chunks]
    return ChunkedAdamW(chunks)


class FusedAdamW(nn.Cell):
    """Updates what one of mindformers' AdamW holds, to the same numbers, by one operator a parameter; uncompiled.

    Inputs: gradients; scale fp32 [], which each is multiplied by in its turn, so that there is one product at a time.

    Args:
        chunk: mindformers' AdamW, whose parameters, moments, step and learning rate these are. betas, eps,
            weight_decay: as of make_optimizer.
    """

    def __init__(self, chunk, betas, eps, weight_decay):
        super().__init__(auto_prefix=False)
        self.parameters, self.exp_avg, self.exp_avg_sq = chunk.parameters, chunk.exp_avg, chunk.exp_avg_sq
        self.global_step, self.learning_rate = chunk.global_step, chunk.learning_rate
        self.betas, self.eps = tuple(betas), eps
        self.decays = tuple(weight_decay if is_decayed(parameter.name) else 0.0 for parameter in chunk.parameters)

    def construct(self, gradients, scale):
        ops.assign(self.global_step, self.global_step + 1)
        step, rate = self.global_step.astype(ms.float32), float(self.learning_rate.asnumpy())
        for values in zip(self.parameters, self.exp_avg, self.exp_avg_sq, gradients, self.decays, strict=True):
            *held, gradient, decay = values
            adamw_update(*held, gradient * scale, step, rate, self.betas, self.eps, decay)
        return step


class ChunkedAdamW:
    """mindformers' AdamW, one for some of the parameters each, see chunks.py.

    Attributes: chunks, to be called with as many gradients as each has parameters; parameters, exp_avg and exp_avg_sq
    of all chunks, in the order of gradients.
    """

    def __init__(self, chunks):
        self.chunks = list(chunks)
        self.parameters, self.exp_avg, self.exp_avg_sq = (
            ParameterTuple([parameter for chunk in self.chunks for parameter in getattr(chunk, name)])
            for name in ("parameters", "exp_avg", "exp_avg_sq"))

    @property
    def steps(self):
        """Number of updates made."""
        return int(self.chunks[0].global_step.asnumpy().reshape(-1)[0])

    def restore_steps(self, steps):
        """Goes on as if so many updates had been made; before anything has been compiled (see set_learning_rate)."""
        for chunk in self.chunks:
            chunk.global_step.set_data(Tensor(np.full(chunk.global_step.shape, steps, np.int32)))


def set_learning_rate(optimizer, value):
    """Sets the learning rate of the next step; compiled graphs read it as a parameter, so nothing is compiled anew.

    By ops.assign: graphs that have run go on with the old value after Parameter.set_data.
    """
    rate = Tensor(value, ms.float32)
    for chunk in optimizer.chunks:
        ops.assign(chunk.learning_rate, rate)


def make_schedule(section, total_steps):
    """A LearningRateSection as a function from the step, counted from 0, to the learning rate.

    The mindformers schedule is asked for step + 1, so that the first step of the warm-up is not one with the rate 0.
    """
    load_mindformers()
    from mindformers.core import lr

    if section.type == "CosineWithWarmUpLR":
        schedule = lr.CosineWithWarmUpLR(learning_rate=section.learning_rate, warmup_steps=section.warmup_steps,
                                         total_steps=total_steps + 1, lr_end=section.lr_end)
    else:
        schedule = lr.ConstantWarmUpLR(learning_rate=section.learning_rate, warmup_steps=section.warmup_steps)

    def learning_rate(step):
        value = float(schedule(Tensor(step + 1, ms.float32)))
        assert math.isfinite(value), f"the schedule gave {value} at step {step}"
        return value

    return learning_rate
