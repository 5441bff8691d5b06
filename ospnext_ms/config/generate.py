"""What `generate` can be told. A default stands in its dataclass and nowhere else."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ospnext_ms.config.checks import FreeText, require, require_above_0, require_at_least, require_seed
from ospnext_ms.config.sections import (
    ContextSection,
    GuidedStepsSection,
    ModelSection,
    ParallelSection,
    VideoSection,
    check_video_size,
    latent_shape_of,
)
from ospnext_ms.diffusion.choices import SamplerName


@dataclass(frozen=True, kw_only=True)
class GenerateContextSection(ContextSection):
    """As ContextSection. With `offload` the weights of the transformer's blocks stay in the host's memory and come to
    the device block by block: less memory there, the same numbers.
    """

    offload: bool = False


@dataclass(frozen=True, kw_only=True)
class GenerateParallelSection(ParallelSection):
    """As ParallelSection; `data_parallel` counts the groups that share a video, and prompts are spread over them.

    With `split_guidance` two such groups make a video together, one for each branch of guidance.
    """

    split_guidance: bool = False


@dataclass(frozen=True, kw_only=True)
class StepCacheSection:
    """Steps that reuse what the blocks added in an earlier one; the last three see diffusion.step_reuse.reused_steps.

    `calibration` is the file that `calibrate-cache` writes, for this network, its adapters and this schedule.
    """

    calibration: str
    threshold: float = 0.12
    max_reused: int = 2
    first_share: float = 0.2

    def __post_init__(self):
        require_above_0(self, "threshold")
        require_at_least(self, 1, "max_reused")
        require(0 <= self.first_share < 1, f"first_share is {self.first_share}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class SamplingSection(GuidedStepsSection):
    """How noise becomes a latent video.

    `starting_noise` names a .npy file [16, T, H/8, W/8], or [n, 16, T, H/8, W/8] with one entry per video; without it
    the noise is drawn from `seed`. `batch_size` videos are denoised together. `cache` leaves out steps; off by default.
    """

    RENAMED: ClassVar = {"latents": "starting_noise"}

    sampler: SamplerName
    seed: int
    starting_noise: str | None = None
    batch_size: int = 1
    cache: StepCacheSection | None = None

    def __post_init__(self):
        super().__post_init__()
        require_seed(self, "seed")
        require_at_least(self, 1, "batch_size")


@dataclass(frozen=True, kw_only=True)
class PromptsSection:
    """A prompt, or a UTF-8 file with one prompt per line, or JSON lines (see generation/prompts.py).

    `samples_per_prompt` videos are made of each.
    """

    prompt: FreeText | None = None      # an empty one is refused where prompts are read
    prompt_file: str | None = None
    samples_per_prompt: int = 1

    def __post_init__(self):
        require((self.prompt is None) != (self.prompt_file is None),
                "give a prompt or a prompt_file (--prompt TEXT or --prompt-file F), not both and not neither")
        require_at_least(self, 1, "samples_per_prompt")


@dataclass(frozen=True, kw_only=True)
class AdapterSection:
    """A LoRA adapter used beside the transformer's own weights: a folder in PEFT's format, times `strength`."""

    path: str
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """One run of `generate`.

    `output_naming` is video_0000 (index), or PROMPT-SAMPLE as VBench reads them (prompt), with records and overviews in
    the folder OUTPUT_DIR_records.

    `adapters` are used together; `adapter: FOLDER` is short for one of strength 1.
    """

    run_mode: Literal["generate"]
    context: GenerateContextSection = GenerateContextSection()
    parallel_config: GenerateParallelSection = GenerateParallelSection()
    model: ModelSection
    sampling: SamplingSection
    video: VideoSection
    prompts: PromptsSection
    adapter: str | None = None
    adapters: tuple[AdapterSection, ...] = ()
    output_dir: str
    output_naming: Literal["index", "prompt"] = "index"

    def __post_init__(self):
        require(self.adapter is None or not self.adapters, "give adapter or adapters, not both")
        check_video_size(self.video.height, self.video.width, self.model.dit.patch_size)
        require(self.sampling.guidance != 1 or not self.parallel_config.split_guidance,
                "parallel_config.split_guidance has nothing to split: sampling.guidance is 1, which is off")

    @property
    def used_adapters(self) -> list[tuple[str, float]]:
        """(folder, strength) of every adapter."""
        alone = [] if self.adapter is None else [(self.adapter, 1.0)]
        return alone + [(adapter.path, adapter.strength) for adapter in self.adapters]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[16, T, H/8, W/8] of one video."""
        return latent_shape_of(self.video, self.model.vae)
