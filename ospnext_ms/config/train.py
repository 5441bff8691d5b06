"""What a training run can be told. Section names, and keys where it has them, follow MindFormers.

A default stands in its dataclass and nowhere else.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ospnext_ms.config.checks import require, require_above_0, require_at_least, require_seed
from ospnext_ms.config.sections import (
    MAX_SHIFT,
    ComputeDtype,
    ContextSection,
    LoRASection,
    ParallelSection,
    TextEncoderSection,
    VAESection,
    check_networks,
    check_video_size,
)
from ospnext_ms.config.validation import ValidationSection
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.models.sizes import check_frames, check_pixels, video_size


@dataclass(frozen=True, kw_only=True)
class TrainDiTSection(DiTConfig):
    """Shape of the transformer. `residual_dtype` is that of the residual stream, fp32 as in the original."""

    residual_dtype: ComputeDtype = "fp32"


@dataclass(frozen=True, kw_only=True)
class TrainModelSection:
    """The transformer; the VAE where training reads videos, and with the text encoder where validation makes some."""

    dit: TrainDiTSection
    vae: VAESection | None = None
    text_encoder: TextEncoderSection | None = None

    def __post_init__(self):
        check_networks(self.dit, self.vae, self.text_encoder)


@dataclass(frozen=True, kw_only=True)
class RunnerSection:
    """How long and on how much.

    `batch_size` samples go through the network at once on every group of processes that shares a video;
    `gradient_accumulation_steps` such batches make one step. `peak_tflops` is what one device computes at most, in
    the compute dtype, for the model-FLOPs utilisation (null: not shown).
    """

    steps: int
    batch_size: int
    gradient_accumulation_steps: int = 1
    peak_tflops: float | None = None

    def __post_init__(self):
        require_at_least(self, 1, "steps", "batch_size", "gradient_accumulation_steps")
        require_above_0(self, "peak_tflops")


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """AdamW of mindformers; norms, biases and modulation are not decayed."""

    type: Literal["AdamW"]
    betas: tuple[float, float]
    eps: float
    weight_decay: float

    def __post_init__(self):
        require(all(0 < beta < 1 for beta in self.betas),
                f"betas is {list(self.betas)}; it must be two numbers between 0 and 1")
        require_above_0(self, "eps")
        require_at_least(self, 0, "weight_decay")


@dataclass(frozen=True, kw_only=True)
class LearningRateSection:
    """A schedule of mindformers: linear warm-up from 0, then constant or half a cosine down to `lr_end` at the end."""

    type: Literal["ConstantWarmUpLR", "CosineWithWarmUpLR"]
    learning_rate: float
    warmup_steps: int
    lr_end: float | None = None

    def __post_init__(self):
        require_above_0(self, "learning_rate")
        require_at_least(self, 0, "warmup_steps")
        if self.type == "CosineWithWarmUpLR":
            require(self.lr_end is not None and 0 <= self.lr_end <= self.learning_rate,
                    f"lr_end is {self.lr_end}; {self.type} needs a value from 0 to learning_rate {self.learning_rate}")
        else:
            require(self.lr_end is None, f"lr_end is {self.lr_end}, which {self.type} does not use; leave it out")


@dataclass(frozen=True, kw_only=True)
class FlowSection:
    """Noise levels: the sigmoid of a normal with `logit_mean` and `logit_std`, then the shift.

    `shift` is a number (1 changes nothing) or `dynamic`, which grows with the tokens of one latent frame.
    """

    shift: Literal["dynamic"] | float
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self):
        require(self.shift == "dynamic" or 0 < self.shift <= MAX_SHIFT,
                f"shift is {self.shift}; it must be dynamic, or a number above 0 and at most {MAX_SHIFT}")
        require_above_0(self, "logit_std")


@dataclass(frozen=True, kw_only=True)
class ClippingSection:
    """Adaptive clipping of the gradient norm, see training/clipping.py."""

    decay: float = 0.99
    deviations: float = 3.0
    start: float = 1.0

    def __post_init__(self):
        require(0 < self.decay < 1, f"decay is {self.decay}; it must be between 0 and 1")
        require_above_0(self, "deviations", "start")


@dataclass(frozen=True, kw_only=True)
class EmaSection:
    """Moving average of the weights; with `warm_up` it is shorter at first: min(decay, (step + 1) / (step + 10))."""

    decay: float
    warm_up: bool = False

    def __post_init__(self):
        require(0 < self.decay < 1, f"decay is {self.decay}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TrainDatasetSection:
    """What is trained on: the folder `path` of `prepare-data` (kind `cache`), or noise that is no data (`random`).

    `exclude` names samples to leave out, as errors name them. `text_drop` is the share of the prompts that become the
    empty text. `random` is for measuring speed, needs the size of its latents [T, h, w] in `latent_size`, and says in
    every progress line what it is.
    """

    kind: Literal["cache", "random"]
    path: str | None = None
    text_drop: float = 0.1
    exclude: tuple[str, ...] = ()
    latent_size: tuple[int, int, int] | None = None

    def __post_init__(self):
        require(0 <= self.text_drop <= 1, f"text_drop is {self.text_drop}; it must be from 0 to 1")
        if self.kind == "cache":
            require(self.path is not None, "path is missing: the folder that prepare-data wrote")
            require(self.latent_size is None, "latent_size is for kind random only; leave it out")
        else:
            require(not self.exclude, "exclude is for kind cache only; leave it out")
            require(self.path is None, f"path is {self.path}, but kind random reads nothing; leave it out")
            require(self.latent_size is not None and min(self.latent_size) > 0,
                    f"latent_size is {self.latent_size}; kind random needs [T, height, width] of the latent")


@dataclass(frozen=True, kw_only=True)
class EvalDatasetSection:
    """A fixed set of clips, noise and noise levels, whose loss is measured before, during and after training.

    `path` is a folder of `prepare-data`; each of its first `clips` clips is taken at `sigmas` noise levels, spread
    evenly over the distribution of training; `every` steps besides before and after (null: only then).
    """

    path: str
    clips: int
    sigmas: int
    seed: int = 0
    every: int | None = None

    def __post_init__(self):
        require_at_least(self, 1, "clips", "sigmas", "every")
        require_seed(self, "seed")


@dataclass(frozen=True, kw_only=True)
class RecomputeSection:
    """With `recompute` only the inputs of blocks are kept for the backward pass, the rest is computed again."""

    recompute: bool = False


@dataclass(frozen=True, kw_only=True)
class ProfileSection:
    """A trace of `steps` steps (iterations), the first of them `start`, counted from 1 as progress lines do."""

    start: int
    steps: int

    def __post_init__(self):
        require_at_least(self, 1, "start", "steps")

    def check(self, total: int) -> None:
        """ValueError where a run of `total` steps has not all of these."""
        require(self.start + self.steps - 1 <= total,
                f"callbacks.profile is of steps {self.start} to {self.start + self.steps - 1}, but there are {total}")


# Names of reporting.trackers.TRACKERS.
TrackerName = Literal["tensorboard", "wandb", "swanlab"]


@dataclass(frozen=True, kw_only=True)
class CallbacksSection:
    """A checkpoint every `save_checkpoint_steps` steps and at the end, the last `keep_checkpoint_max` being kept (null:
    all); a progress line every `per_print_times` steps. `trackers` get figures,
    pictures and the configuration, too; `profile` looks at some steps closely."""

    REPLACED: ClassVar = {"tensorboard": "write trackers: [tensorboard] for true, trackers: [] for false"}

    save_checkpoint_steps: int
    keep_checkpoint_max: int | None = 3
    per_print_times: int = 1
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    profile: ProfileSection | None = None

    def __post_init__(self):
        require(len(set(self.trackers)) == len(self.trackers), f"trackers names one twice: {list(self.trackers)}")
        require_at_least(self, 1, "save_checkpoint_steps", "keep_checkpoint_max", "per_print_times")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of `train`.

    A resumed run may differ from the one it goes on with in a few keys only (resuming.py).

    `load_checkpoint` names the weights to start from: a checkpoint in the original names, or the folder `parameters` or
    `ema` of a training checkpoint; null starts from random weights. With `lora` they stay as they are (8-bit ones too)
    and adapters beside them are trained, of which optimizer, ema and checkpoints then are. With `resume_training` the
    newest intact checkpoint in `output_dir` comes first, so that the same command goes on where it was stopped; without
    it, an `output_dir` that has checkpoints is refused.
    """

    run_mode: Literal["train", "finetune"]
    seed: int
    output_dir: str
    load_checkpoint: str | None
    resume_training: bool = True
    context: ContextSection = ContextSection()
    parallel_config: ParallelSection = ParallelSection()
    model: TrainModelSection
    lora: LoRASection | None = None
    runner_config: RunnerSection
    optimizer: OptimizerSection
    lr_schedule: LearningRateSection
    flow: FlowSection
    clipping: ClippingSection = ClippingSection()
    ema: EmaSection
    train_dataset: TrainDatasetSection
    eval_dataset: EvalDatasetSection | None = None
    validation: ValidationSection | None = None
    recompute_config: RecomputeSection = RecomputeSection()
    callbacks: CallbacksSection

    def __post_init__(self):
        require_seed(self, "seed")
        require(self.lr_schedule.warmup_steps < self.runner_config.steps,
                f"lr_schedule.warmup_steps is {self.lr_schedule.warmup_steps}; it must be below runner_config.steps "
                f"{self.runner_config.steps}")
        require(self.run_mode == "train" or self.load_checkpoint is not None,
                "load_checkpoint is null; run_mode finetune needs weights to start from, run_mode train does not")
        require(self.lora is None or self.load_checkpoint is not None,
                "load_checkpoint is null; adapters (lora) need the weights that they are to be used beside")
        self._check_sizes()
        if self.callbacks.profile is not None:
            self.callbacks.profile.check(self.runner_config.steps)
        if self.validation is not None:
            require(self.model.vae and self.model.text_encoder,
                    "validation makes videos, which needs model.vae and model.text_encoder; give both, or leave "
                    "validation out")
            check_video_size(self.validation.video.height, self.validation.video.width, self.model.dit.patch_size,
                             "validation.video")

    def _check_sizes(self) -> None:
        size, patch = self.train_dataset.latent_size, self.model.dit.patch_size
        if size is None:
            return
        require(not (size[1] % patch[1] or size[2] % patch[2]),
                f"train_dataset.latent_size is {size}; height and width must be multiples of {patch[1]} and {patch[2]}")
        height, width, frames = video_size(*size)
        check_pixels("train_dataset.latent_size: the video's height", height)
        check_pixels("train_dataset.latent_size: the video's width", width)
        check_frames("train_dataset.latent_size: the video's number of frames", frames)
