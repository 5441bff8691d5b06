"""What a post-training run can be told. A default stands in its dataclass and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ospnext_ms.config.checks import require, require_above_0, require_at_least, require_seed
from ospnext_ms.config.sections import (
    ContextSection,
    DiTSection,
    GuidedStepsSection,
    LoRASection,
    ModelSection,
    ParallelSection,
    VideoSection,
    check_video_size,
    latent_shape_of,
)
from ospnext_ms.config.train import (
    CallbacksSection,
    ClippingSection,
    EmaSection,
    LearningRateSection,
    OptimizerSection,
    RecomputeSection,
    TrainDiTSection,
)
from ospnext_ms.config.validation import WatchedPromptsSection
from ospnext_ms.diffusion.choices import NoiseKind, SamplerName, WindowStrategy
from ospnext_ms.diffusion.windows import window_start
from ospnext_ms.models.sizes import check_frames


@dataclass(frozen=True, kw_only=True)
class PolicyDiTSection(DiTSection, TrainDiTSection):
    """Shape and weights of the frozen transformer."""


@dataclass(frozen=True, kw_only=True)
class PolicyModelSection(ModelSection):
    """The three networks."""

    dit: PolicyDiTSection


@dataclass(frozen=True, kw_only=True)
class PolicySamplingSection(GuidedStepsSection):
    """How noise becomes a latent, in rollouts, in the update and in evaluation alike; serve with the same values."""

    def __post_init__(self):
        super().__post_init__()
        require(self.steps >= 2, f"steps is {self.steps}; it must be at least 2, the last is never stochastic")


@dataclass(frozen=True, kw_only=True)
class WindowSection:
    """Which `size` steps are stochastic and trained.

    `first`: the first ones; `progressive`: the window moves on by a step every `every` iterations and begins anew after
    its last place; `random`: its place is drawn anew every `every` iterations.
    """

    strategy: WindowStrategy
    size: int
    every: int = 25

    def __post_init__(self):
        require_at_least(self, 1, "every")


@dataclass(frozen=True, kw_only=True)
class RolloutSection:
    """How an iteration's videos are made.

    `prompts` prompts with `group_size` videos each; `batch_size` videos go through the network at once. `noise` and
    `eta` are those of diffusion.flow.noise_std. After the window the ODE goes on with `rest_sampler`; `rest_steps`
    gives it fewer steps than the schedule has left (null: as many). `reward_frames` is how many frames of a video are
    decoded and judged in training (null: all of them).
    """

    prompts: int
    group_size: int
    batch_size: int
    noise: NoiseKind
    eta: float = 0.7
    window: WindowSection
    rest_sampler: SamplerName = "euler"
    rest_steps: int | None = None
    reward_frames: int | None = None

    def __post_init__(self):
        require(self.group_size >= 2, f"group_size is {self.group_size}; it must be at least 2 to compare videos")
        require_at_least(self, 1, "prompts", "batch_size", "rest_steps", "reward_frames")
        require_above_0(self, "eta")
        if self.reward_frames is not None:
            check_frames("reward_frames", self.reward_frames)


@dataclass(frozen=True, kw_only=True)
class PolicySection:
    """The policy update.

    Ratios are clipped to 1 +- `clip`, advantages to +- `advantage_limit`. `kl_weight` weighs the KL divergence to the
    frozen network; with `measure_kl` it is computed even at weight 0. Every iteration's videos are gone through
    `inner_epochs` times, each time in `minibatches` optimiser steps; `micro_batch_size` (video, step) pairs go through
    the network at once. So many iterations in a row in which no two videos of a group have different rewards end the
    run: `equal_rewards_limit` (null: none do).
    """

    clip: float
    advantage_limit: float = 5.0
    kl_weight: float = 0.0
    measure_kl: bool = False
    inner_epochs: int = 1
    minibatches: int = 1
    micro_batch_size: int
    equal_rewards_limit: int | None = 10

    def __post_init__(self):
        require(0 < self.clip < 1, f"clip is {self.clip}; it must be between 0 and 1")
        require_above_0(self, "advantage_limit")
        require_at_least(self, 0, "kl_weight")
        require_at_least(self, 1, "inner_epochs", "minibatches", "micro_batch_size", "equal_rewards_limit")


@dataclass(frozen=True, kw_only=True)
class RewardSection:
    """One reward, in a process of its own (see post_training/rewards).

    `callable` is package.module:name, called once with `arguments`; `weight` 0 makes it a guard that is only watched.
    `python` is the interpreter of its environment (null: this one). A batch that takes longer than `timeout_seconds`
    or fails is tried `retries` times more; `on_failure: drop` leaves videos without a finite score out and counts
    them, `error` ends the run.
    """

    name: str
    callable: str
    weight: float
    arguments: dict
    python: str | None = None
    timeout_seconds: float = 600.0
    start_timeout_seconds: float = 600.0
    retries: int = 1
    on_failure: Literal["error", "drop"] = "error"

    def __post_init__(self):
        module, colon, name = self.callable.partition(":")
        require(module and colon and name, f"callable is {self.callable!r}; expected package.module:name")
        require_at_least(self, 0, "retries")
        require_above_0(self, "timeout_seconds", "start_timeout_seconds")


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """Held-out prompts, sampled with the ODE and the averaged adapters: before, every `every` iterations, at the end.

    `count` videos are made, going through the file's prompts in order and again, with noise from `seed`; of the first
    `videos` ones mp4 files are kept. `fewer_frames` judges rollout.reward_frames frames here too.
    """

    prompt_file: str
    count: int
    seed: int
    every: int | None = None
    videos: int = 8
    fewer_frames: bool = False

    def __post_init__(self):
        require_at_least(self, 2, "count")
        require_at_least(self, 0, "videos")
        require_seed(self, "seed")
        require_at_least(self, 1, "every")


@dataclass(frozen=True, kw_only=True)
class PostTrainRunnerSection:
    """How many iterations: rollout, rewards, update."""

    iterations: int

    def __post_init__(self):
        require_at_least(self, 1, "iterations")


@dataclass(frozen=True, kw_only=True)
class PostTrainConfig:
    """One run of `post-train`. The same command resumes it from the newest intact checkpoint in `output_dir`.

    What may differ then is in resuming.py.
    """

    run_mode: Literal["post_train"]
    seed: int
    output_dir: str
    resume_training: bool = True
    context: ContextSection = ContextSection()
    parallel_config: ParallelSection = ParallelSection()
    model: PolicyModelSection
    video: VideoSection
    sampling: PolicySamplingSection
    rollout: RolloutSection
    lora: LoRASection
    policy: PolicySection
    optimizer: OptimizerSection
    lr_schedule: LearningRateSection
    clipping: ClippingSection = ClippingSection()
    ema: EmaSection
    rewards: tuple[RewardSection, ...]
    prompt_file: str
    evaluation: EvaluationSection
    validation: WatchedPromptsSection | None = None
    runner_config: PostTrainRunnerSection
    recompute_config: RecomputeSection = RecomputeSection()
    callbacks: CallbacksSection

    def __post_init__(self):
        require_seed(self, "seed")
        check_video_size(self.video.height, self.video.width, self.model.dit.patch_size)
        window, frames = self.rollout.window, self.rollout.reward_frames
        window_start(window.strategy, window.size, window.every, self.sampling.steps, 0, 0)
        require(frames is None or frames <= self.video.frames,
                f"rollout.reward_frames is {frames}; video.frames is {self.video.frames}")
        _check_rewards(self.rewards)
        if self.callbacks.profile is not None:
            self.callbacks.profile.check(self.runner_config.iterations)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[16, T, H/8, W/8] of one video."""
        return latent_shape_of(self.video, self.model.vae)


def _check_rewards(sections: Sequence[RewardSection]) -> None:
    require(sections, "rewards is empty; it must be a list of sections")
    names = [section.name for section in sections]
    require(len(set(names)) == len(names), f"rewards: names must differ, these are {names}")
    require(any(section.weight for section in sections), "rewards: all weights are 0, so nothing is sought")
