"""AdamW and learning-rate schedules of mindformers, set up for a list of parameters."""

import math

import mindspore as ms
from mindspore import Tensor, ops

from ospnext_ms.training.mindformers import load_mindformers

UNDECAYED = ("norm", "bias", "modulation")


def is_decayed(name):
    """False for parameters that weight decay would pull away from their meaning: norms, biases, modulation."""
    return not any(part in name for part in UNDECAYED)


def make_optimizer(parameters, *, betas, eps, weight_decay):
    """mindformers' AdamW (unfused: the fused one needs Ascend); its learning rate is set by `set_learning_rate`.

    Use the optimiser's own `parameters` for the order of gradients: they are grouped by decay.
    """
    load_mindformers()
    from mindformers.core.optim.adamw import AdamW

    decayed = [parameter for parameter in parameters if is_decayed(parameter.name)]
    undecayed = [parameter for parameter in parameters if not is_decayed(parameter.name)]
    groups = [{"params": group, "weight_decay": decay}
              for group, decay in ((decayed, weight_decay), (undecayed, 0.0)) if group]
    # 1e-3 stands in until the first step sets it.
    return AdamW(groups, learning_rate=1e-3, betas=tuple(betas), eps=eps, weight_decay=weight_decay)


def set_learning_rate(optimizer, value):
    """Sets the learning rate of the next step; compiled graphs read it as a parameter, so nothing is compiled anew.

    By ops.assign: graphs that have run go on with the old value after Parameter.set_data.
    """
    ops.assign(optimizer.learning_rate, Tensor(value, ms.float32))


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
