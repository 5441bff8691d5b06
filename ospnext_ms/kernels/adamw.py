"""One update of AdamW, in place."""

import mindspore as ms
from mindspore import ops
from mindspore.ops.auto_generate import AdamW

from ospnext_ms.kernels.device import on_ascend


def adamw_update(parameter, exp_avg, exp_avg_sq, gradient, step, rate, betas, eps, weight_decay):
    """p := p (1 - rate * decay) - rate m' / (sqrt(v') + eps), m' and v' being the moments without their bias.

    On Ascend one operator (aclnnApplyAdamWV2), outside compiled functions only: it takes the rate as a number, which
    would be compiled in.

    Args:
        parameter, exp_avg, exp_avg_sq: Parameters of one shape, fp32; changed. gradient: of their shape, fp32.
        step: fp32 [1], the number of this update, counted from 1. rate, eps, weight_decay: numbers.
    """
    beta1, beta2 = betas
    if on_ascend():
        # What stands for the maximum of exp_avg_sq is read with amsgrad only.
        AdamW()(parameter, exp_avg, exp_avg_sq, exp_avg_sq, gradient, step, rate, beta1, beta2, weight_decay, eps,
                False, False)
        return
    exp_avg = ops.assign(exp_avg, exp_avg * beta1 + gradient * (1 - beta1))
    exp_avg_sq = ops.assign(exp_avg_sq, exp_avg_sq * beta2 + ops.square(gradient) * (1 - beta2))
    number = float(step.asnumpy()[0])
    denominator = ops.sqrt(exp_avg_sq / (1 - beta2**number)) + eps
    change = exp_avg / denominator * (rate / (1 - beta1**number))
    ops.assign(parameter, (parameter * (1 - rate * weight_decay) - change).astype(ms.float32))
