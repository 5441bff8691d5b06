"""The policy on the training path: log-probabilities of what a rollout did, and the clipped loss on them.

B samples of (video, step) pairs. Levels are tensors [B], so that no step of the schedule is compiled in. All of it is
fp32 but the network itself.
"""

from mindspore import nn, ops

from ospnext_ms.diffusion.sampler import guided_velocity, sde_step
from ospnext_ms.kernels import reductions


class GuidedVelocity(nn.Cell):
    """The network's velocity with guidance, fp32.

    Args:
        net: OSPNextDiT. guidance: 1 leaves the unconditional branch out.

    Inputs: x [B, 16, T, h, w], t [B], text and negative [B, L, C]. Output as x.
    """

    def __init__(self, net, guidance):
        super().__init__()
        self.net = net
        self.guidance = guidance

    def construct(self, x, t, text, negative):
        velocity = self.net(x, t, text)
        if self.guidance == 1:
            return velocity
        return guided_velocity(velocity, self.net(x, t, negative), self.guidance)


class StepLogProb(nn.Cell):
    """Log-probability [B] of the step from x to x_next, and the mean [B, 16, T, h, w] of the step's distribution.

    Inputs: x, x_next; text, negative; sigma, sigma_next, std [B] (see diffusion.sampler.sde_step).
    """

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def construct(self, x, x_next, text, negative, sigma, sigma_next, std):
        velocity = self.velocity(x, 1000.0 * sigma, text, negative)
        _, log_prob, mean = sde_step(velocity, x, sigma, sigma_next, std, prev_sample=x_next)
        return log_prob, mean


def kl_to_reference(mean, reference_mean, sigma, sigma_next, std):
    """KL divergence [B] of two steps of one std: mean((mu - mu_ref)^2) / (2 std^2 (sigma - sigma_next)).

    Averaged over all dimensions but the first, as the log-probability is.
    """
    squares = reductions.mean_per_sample(ops.square(mean - reference_mean))
    return squares / (2 * std * std * (sigma - sigma_next))


class PolicyLoss(nn.Cell):
    """Clipped policy-gradient loss of (video, step) pairs, plus the KL divergence to the frozen network.

        ratio = exp(log_prob - old_log_prob)
        loss = mean(weight * max(-A * ratio, -A * clip(ratio, 1 - c, 1 + c))) + kl_weight * mean(weight * KL)

    Args:
        step_log_prob: StepLogProb. clip: c. kl_weight: 0 leaves KL out of the loss. with_kl: compute KL (else 0,
            and ValueError where the loss wants it).

    Inputs: those of StepLogProb; old_log_prob, advantage, weight [B]; reference_mean as x (ignored without KL);
    is_fresh [], 1 while nothing has changed since the old log-probabilities were taken: then this very pass takes them,
    and every ratio is exactly 1 (two passes may differ in the last digits, as kernels choose their threads by trial).
    Outputs: loss []; ratio, KL and log_prob [B], which carry no gradient.
    """

    def __init__(self, step_log_prob, clip, kl_weight, with_kl):
        super().__init__()
        if kl_weight and not with_kl:
            raise ValueError(f"kl_weight is {kl_weight}, but the KL divergence is not to be computed")
        self.step_log_prob = step_log_prob
        self.clip = clip
        self.kl_weight = kl_weight
        self.with_kl = with_kl

    def construct(self, x, x_next, text, negative, sigma, sigma_next, std, old_log_prob, advantage, weight,
                  reference_mean, is_fresh):
        log_prob, mean = self.step_log_prob(x, x_next, text, negative, sigma, sigma_next, std)
        old_log_prob = is_fresh * ops.stop_gradient(log_prob) + (1 - is_fresh) * old_log_prob
        ratio = ops.exp(log_prob - old_log_prob)
        clipped = ops.clamp(ratio, 1.0 - self.clip, 1.0 + self.clip)
        loss = reductions.mean(weight * ops.maximum(-advantage * ratio, -advantage * clipped))
        kl = ops.zeros_like(ratio)
        if self.with_kl:
            kl = kl_to_reference(mean, reference_mean, sigma, sigma_next, std)
            if self.kl_weight:
                loss = loss + self.kl_weight * reductions.mean(weight * kl)
        return loss, ops.stop_gradient(ratio), ops.stop_gradient(kl), ops.stop_gradient(log_prob)
