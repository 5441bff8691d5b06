"""The policy on the training path: loss, KL and gradients against NumPy in float64, agreement with the rollout."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from ospnext_ms.kernels.assign import assign_values
from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from ospnext_ms.models.lora import Adapters, LoRAConfig
from ospnext_ms.post_training.policy import GuidedVelocity, PolicyLoss, StepLogProb, kl_to_reference
from ospnext_ms.post_training.rollout import Rollout, step_noise
from ospnext_ms.post_training.schedule import rollout_schedule
from ospnext_ms.post_training.update import Experience, levels_of, plan_micro_batches, score
from tests.support import post_train_runs as runs
from tests.support import toy

SHAPE = (4, 2, 2, 3, 4)
LEVELS = {"sigma": [1.0, 0.7, 0.4, 0.2], "sigma_next": [0.9, 0.6, 0.2, 0.1], "std": [1.0, 0.7, 0.5, 0.2]}


class Linear(nn.Cell):
    """A velocity with one weight: weight * x + text, so that everything can be computed by hand."""

    def __init__(self, weight):
        super().__init__()
        self.weight = ms.Parameter(Tensor(weight, ms.float32), name="weight")

    def construct(self, x, t, text, negative):
        return self.weight * x + text.mean((1, 2)).reshape(-1, 1, 1, 1, 1)


def case(seed=0):
    rng = np.random.default_rng(seed)
    x, x_next, reference = rng.standard_normal((3, *SHAPE))
    text, negative = rng.standard_normal((2, 4, 3, 2))
    levels = [np.array(values) for values in LEVELS.values()]
    x_next = step_mean(0.3, x, text, *levels) + shaped(levels[2] * np.sqrt(levels[0] - levels[1])) * x_next
    return x, x_next, text, negative, *levels, reference


def shaped(values):
    return np.asarray(values).reshape(-1, 1, 1, 1, 1)


def step_mean(weight, x, text, sigma, sigma_next, std):
    sigma, dt, std = shaped(sigma), shaped(sigma_next - sigma), shaped(std)
    velocity = weight * x + shaped(text.mean((1, 2)))
    drift = std**2 / (2 * sigma)
    return x * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt


def numpy_loss(weight, case, old, advantage, weights, clip, kl_weight):
    x, x_next, text, _, sigma, sigma_next, std, reference = case
    mean, axes = step_mean(weight, x, text, sigma, sigma_next, std), (1, 2, 3, 4)
    step_std = shaped(std * np.sqrt(sigma - sigma_next))
    log_prob = (-0.5 * ((x_next - mean) / step_std) ** 2 - np.log(step_std) - 0.5 * math.log(2 * math.pi)).mean(axes)
    ratio = np.exp(log_prob - old)
    kl = ((mean - reference) ** 2).mean(axes) / (2 * std**2 * (sigma - sigma_next))
    surrogate = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - clip, 1 + clip))
    return (weights * (surrogate + kl_weight * kl)).mean(), ratio, kl, log_prob


def tensors(case, old, advantage, weights, is_fresh=0.0):
    *inputs, reference = case
    return [Tensor(a, ms.float32) for a in (*inputs, old, advantage, weights, reference, np.array(is_fresh))]


OLD_SHIFT = np.array([0.0, 0.3, -0.3, 0.05])
ADVANTAGE, WEIGHTS = np.array([1.0, -2.0, 0.5, 1.5]), np.array([1.0, 2.0, 0.0, 0.5])


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_loss_against_float64(kl_weight):
    inputs, clip = case(), 0.1
    old = numpy_loss(0.25, inputs, 0, 0, 0, clip, 0)[3] + OLD_SHIFT
    expected = numpy_loss(0.25, inputs, old, ADVANTAGE, WEIGHTS, clip, kl_weight)
    loss = PolicyLoss(StepLogProb(Linear(0.25)), clip, kl_weight, True)
    for actual, wanted in zip(loss(*tensors(inputs, old, ADVANTAGE, WEIGHTS)), expected, strict=True):
        np.testing.assert_allclose(actual.asnumpy(), wanted, rtol=2e-6, atol=1e-6)
    assert (np.abs(expected[1] - 1) > clip).sum() == 2, "two ratios are to be clipped"


def test_kl_against_float64_with_tight_tolerance():
    mean, reference = np.random.default_rng(1).standard_normal((2, *SHAPE))
    sigma, sigma_next, std = (np.array(values) for values in LEVELS.values())
    expected = ((mean - reference) ** 2).mean((1, 2, 3, 4)) / (2 * std**2 * (sigma - sigma_next))
    arguments = [Tensor(a, ms.float32) for a in (mean, reference, sigma, sigma_next, std)]
    np.testing.assert_allclose(kl_to_reference(*arguments).asnumpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_against_finite_differences(kl_weight, compiled):
    inputs, clip, h = case(), 0.1, 1e-6
    old = numpy_loss(0.25, inputs, 0, 0, 0, clip, 0)[3] + OLD_SHIFT
    up, down = (numpy_loss(0.25 + d, inputs, old, ADVANTAGE, WEIGHTS, clip, kl_weight)[0] for d in (h, -h))
    net = Linear(0.25)
    gradient = ms.value_and_grad(PolicyLoss(StepLogProb(net), clip, kl_weight, True), None, [net.weight])
    gradient = ms.jit(gradient) if compiled else gradient
    (value,) = gradient(*tensors(inputs, old, ADVANTAGE, WEIGHTS))[1]
    assert value.asnumpy() == pytest.approx((up - down) / (2 * h), rel=1e-4)


def test_kl_has_a_gradient_of_its_own():
    inputs, nothing = case(), np.zeros(4)
    net = Linear(0.25)
    loss = PolicyLoss(StepLogProb(net), 0.1, 1.0, True)
    (value,) = ms.value_and_grad(loss, None, [net.weight])(*tensors(inputs, nothing, nothing, np.ones(4)))[1]
    assert abs(value.asnumpy()) > 1e-3


def test_fresh_ratios_are_exactly_one_and_have_the_gradient():
    inputs = case()
    old = numpy_loss(0.25, inputs, 0, 0, 0, 0.1, 0)[3]
    net = Linear(0.25)
    gradient = ms.value_and_grad(PolicyLoss(StepLogProb(net), 0.1, 0.0, False), None, [net.weight])
    (_, ratio, _, _), (fresh,) = gradient(*tensors(inputs, old + 0.3, ADVANTAGE, WEIGHTS, is_fresh=1.0))
    np.testing.assert_array_equal(ratio.asnumpy(), 1)
    _, (scored,) = gradient(*tensors(inputs, old, ADVANTAGE, WEIGHTS))
    assert fresh.asnumpy() == pytest.approx(float(scored.asnumpy()), rel=1e-4)


def test_kl_weight_needs_the_kl():
    with pytest.raises(ValueError, match="kl_weight is 0.1"):
        PolicyLoss(StepLogProb(Linear(0.2)), 0.1, 0.1, False)


@pytest.fixture(scope="module")
def played():
    """A network with adapters, and a rollout of it: 4 videos of 2 groups, 3 stochastic steps of 5."""
    ms.set_seed(1)
    net = OSPNextDiT(DiTConfig(**runs.DIT))
    adapters = Adapters(net, LoRAConfig(rank=2, alpha=4, targets=("q", "k", "v", "o")))
    for i, parameter in enumerate(adapters.parameters):
        assign_values(parameter, 0.2 * runs.noise(parameter.shape, 100 + i))
    schedule = rollout_schedule(5, 3.0, 1, 3, "osp", 0.7)
    starts = {group: runs.noise(runs.LATENT, group) for group in (0, 1)}
    texts = {group: runs.noise((6, 16), 10 + group) for group in (0, 1)}
    negative = runs.noise((6, 16), 20)
    groups = [0, 0, 1, 1]

    def draw(video, step):
        return step_noise(runs.LATENT, 0, 0, video, step)

    trajectory = Rollout(GuidedVelocity(net, 3.0), 4, "euler")(schedule, starts, groups, texts, negative, draw)
    experience = Experience(trajectory.samples, np.stack([texts[g] for g in groups]), negative, levels_of(schedule),
                            np.zeros(4, np.float32))
    return net, adapters, trajectory, experience


def disagreement(net, adapters, trajectory, experience, guidance=3.0, size=6):
    planned = plan_micro_batches(np.ones(4, bool), 0, 1, 3, size, 0, 0)
    scored = score(StepLogProb(GuidedVelocity(net, guidance)), experience, planned, adapters, False)
    return max(np.abs(trajectory.log_probs[b.steps, b.videos] - b.old_log_probs)[b.real].max() for b in scored)


def test_rollout_and_training_path_agree(played):
    assert disagreement(*played) < 1e-4


@pytest.mark.parametrize("what", ["guidance", "text", "negative text", "adapter scale", "step order"])
def test_they_would_not_agree_if_something_differed(played, what):
    net, adapters, trajectory, own = played
    if what == "guidance":
        assert disagreement(*played, guidance=1.5) > 1e-3
    elif what == "adapter scale":
        with adapters.disabled():
            assert disagreement(*played) > 1e-3
    else:
        changed = {"text": dict(texts=own.texts[::-1]), "negative text": dict(negative=own.negative + 1),
                   "step order": dict(levels=own.levels[::-1])}[what]
        own = Experience(**{**vars(own), **changed})
        assert disagreement(net, adapters, trajectory, own) > 1e-3


class Toy:
    """Velocity of the Gaussian toy; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t, text, negative):
        self.calls += 1
        return toy.velocity(x, float(t.asnumpy()[0]) / 1000)


def roll_toy(schedule, videos, group_size, batch_size, rest="euler", scale=1.0):
    velocity = Toy()
    groups = [v // group_size for v in range(videos)]
    starts = {g: runs.noise((2, 1, 4, 4), g) for g in set(groups)}
    texts, rng = {g: np.zeros((1, 1), np.float32) for g in starts}, np.random.default_rng(9)
    trajectory = Rollout(velocity, batch_size, rest)(
        schedule, starts, groups, texts, np.zeros((1, 1), np.float32),
        lambda video, step: scale * rng.standard_normal((2, 1, 4, 4), dtype=np.float32))
    return trajectory, velocity.calls, starts


def test_the_prefix_is_computed_once_a_group():
    """12 steps, window 4..5: 4 steps of 3 groups, then 8 of 12 videos; every call has room for 3."""
    schedule = rollout_schedule(12, 3.0, 4, 2, "osp", 0.7)
    trajectory, calls, _ = roll_toy(schedule, 12, 4, 3)
    assert calls == 4 * 1 + 8 * 4
    first = trajectory.samples[0].reshape(3, 4, -1)
    assert (first == first[:, :1]).all()
    assert len(np.unique(trajectory.latents.reshape(12, -1), axis=0)) == 12


@pytest.mark.parametrize("rest", ["euler", "unipc", "dpm++"])
def test_without_noise_a_rollout_tends_to_the_ode(rest):
    """With eta -> 0 the stochastic steps become Euler steps of the serving schedule."""
    errors = []
    for eta in (1e-1, 1e-3):
        schedule = rollout_schedule(40, 3.0, 2, 10, "flow_grpo", eta)
        trajectory, _, starts = roll_toy(schedule, 2, 1, 2, rest)
        exact = np.stack([toy.solution(starts[g], 1.0, 0.0) for g in (0, 1)])
        errors.append(np.abs(trajectory.latents - exact).max())
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


def test_a_multistep_rest_converges_faster():
    """Twice the steps after the window: Euler errs about half as much, the multistep method of order 2 a quarter."""
    improvements = {}
    for rest in ("euler", "unipc", "dpm++"):
        errors = []
        for steps in (12, 24):
            schedule = rollout_schedule(40, 3.0, 0, 10, "flow_grpo", 1e-4, rest_steps=steps)
            trajectory, calls, _ = roll_toy(schedule, 1, 1, 1, rest)
            assert calls == 10 + steps
            exact = toy.solution(trajectory.samples[-1][0], schedule.rest[0], 0.0)
            errors.append(np.abs(trajectory.latents[0] - exact).max())
        improvements[rest] = errors[0] / errors[1]
    assert 1.5 < improvements["euler"] < 2.5
    assert min(improvements["unipc"], improvements["dpm++"]) > 3, improvements


def test_rollout_marginals_are_those_of_the_flow():
    """n = 256 videos of 32 numbers, all from noise of their own: mean and variance within 5 standard errors plus the
    Euler error of the 64 steps (below 2 %, see tests/diffusion/test_sampler.py)."""
    schedule = rollout_schedule(64, 1.0, 0, 63, "osp", 0.7)
    trajectory, _, _ = roll_toy(schedule, 256, 1, 256)
    n, (mean, variance) = trajectory.latents.size, toy.marginal(0.0)
    assert abs(trajectory.latents.mean() - mean) < 5 * math.sqrt(variance / n) + 0.02
    assert abs(trajectory.latents.var() / variance - 1) < 5 * math.sqrt(2 / n) + 0.05
