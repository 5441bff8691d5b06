"""What a run can be told, section by section: a frozen dataclass each, read from YAML by ospnext_ms.yaml_reader.

A default stands in its dataclass and nowhere else. Section names follow MindFormers where it has them.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ospnext_ms.models.config import DiTConfig, UMT5Config, VAEConfig
from ospnext_ms.yaml_reader import ConfigError, load_config, nearest, read_section, require, require_at_least

__all__ = ["ConfigError", "ContextSection", "DiTSection", "GenerateConfig", "GenerateParallelSection",
           "GuidedStepsSection", "ModelSection", "ParallelSection", "PromptsSection", "SamplingSection",
           "TextEncoderSection", "VAESection", "VideoSection", "check_video_size", "latent_shape_of", "load_config",
           "read_section"]

SPATIAL_COMPRESSION = 8
TEMPORAL_COMPRESSION = 4


@dataclass(frozen=True, kw_only=True)
class ContextSection:
    """Device, execution mode and compute dtype; `auto` is Ascend with bf16 where there is one, else CPU with fp32."""

    device_target: Literal["auto", "CPU", "Ascend"] = "auto"
    mode: Literal["graph", "pynative"] = "graph"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"


@dataclass(frozen=True, kw_only=True)
class ParallelSection:
    """How the processes that msrun started share the work (see ospnext_ms.parallel.mesh).

    `skiparse_parallel` x `ulysses_parallel` processes share a video; `data_parallel` such groups work on different
    ones (null: as many as there are). Each weight of the transformer is spread over `parameter_shard` processes (1:
    every process has all weights).
    """

    data_parallel: int | None = None
    skiparse_parallel: int = 1
    ulysses_parallel: int = 1
    parameter_shard: int = 1

    def __post_init__(self):
        require_at_least(self, 1, "data_parallel", "skiparse_parallel", "ulysses_parallel", "parameter_shard")


@dataclass(frozen=True, kw_only=True)
class GenerateParallelSection(ParallelSection):
    """As ParallelSection; `data_parallel` counts the groups that share a video, and prompts are spread over them.

    With `split_guidance` two such groups make a video together, one for each branch of guidance.
    """

    split_guidance: bool = False


@dataclass(frozen=True, kw_only=True)
class DiTSection(DiTConfig):
    """Shape and weights of the transformer."""

    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class VAESection(VAEConfig):
    """Shape and weights of the VAE; tile sizes in pixels, no tiling where they are left out."""

    checkpoint: str
    tile_size: int | None = None
    tile_overlap: int | None = None

    def __post_init__(self):
        super().__post_init__()
        size, overlap, unit = self.tile_size, self.tile_overlap, SPATIAL_COMPRESSION
        require((size is None) == (overlap is None), "tile_size and tile_overlap are given together or not at all")
        if size is not None:
            require(size > 0 and size % unit == 0,
                    f"tile_size is {size}; it must be a multiple of {unit}; nearest valid: {nearest(size, unit)}")
            require(0 <= overlap < size and overlap % unit == 0,
                    f"tile_overlap is {overlap}; it must be a multiple of {unit} from 0 to {size - unit}; "
                    f"nearest valid: {nearest(min(overlap, size - 2 * unit), unit, lowest=0)}")


@dataclass(frozen=True, kw_only=True)
class TextEncoderSection(UMT5Config):
    """Shape, weights and tokenizer folder of the text encoder."""

    checkpoint: str
    tokenizer: str


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The three networks, which have to fit one another."""

    dit: DiTSection
    vae: VAESection
    text_encoder: TextEncoderSection

    def __post_init__(self):
        dit, vae, text_encoder = self.dit, self.vae, self.text_encoder
        require(text_encoder.dim == dit.text_dim,
                f"text_encoder.dim is {text_encoder.dim} but dit.text_dim is {dit.text_dim}; they must be equal")
        require(vae.z_dim == dit.in_channels == dit.out_channels,
                f"vae.z_dim {vae.z_dim}, dit.in_channels {dit.in_channels} and dit.out_channels {dit.out_channels} "
                "must be equal")


@dataclass(frozen=True, kw_only=True)
class GuidedStepsSection:
    """Steps from noise to a latent. `guidance` 1 switches guidance off."""

    steps: int
    shift: float
    guidance: float
    negative_prompt: str

    def __post_init__(self):
        require_at_least(self, 1, "steps")
        require(0 < self.shift < math.inf, f"shift is {self.shift}; it must be a number above 0 (1 changes nothing)")
        require(1 <= self.guidance < math.inf, f"guidance is {self.guidance}; it must be at least 1 (which is off)")


@dataclass(frozen=True, kw_only=True)
class SamplingSection(GuidedStepsSection):
    """How noise becomes a latent video.

    `latents` names a .npy file of starting noise [16, T, H/8, W/8], or [n, 16, T, H/8, W/8] with one entry per video;
    without it the noise is drawn from `seed`. `batch_size` videos are denoised together.
    """

    sampler: Literal["euler", "unipc"]
    seed: int
    latents: str | None = None
    batch_size: int = 1

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 0, "seed")
        require_at_least(self, 1, "batch_size")


@dataclass(frozen=True, kw_only=True)
class VideoSection:
    """Size of the videos in pixels and frames; `crf` is H.264's constant rate factor, lower is better and larger."""

    height: int
    width: int
    frames: int
    fps: int
    crf: int = 18

    def __post_init__(self):
        step = TEMPORAL_COMPRESSION
        require(self.frames >= 1 and self.frames % step == 1,
                f"frames is {self.frames}; it must be {step}k+1; "
                f"nearest valid: {nearest(self.frames, step, offset=1, lowest=1)}")
        require_at_least(self, 1, "fps")
        require(0 <= self.crf <= 51, f"crf is {self.crf}; it must be from 0 (lossless) to 51 (worst)")


@dataclass(frozen=True, kw_only=True)
class PromptsSection:
    """A prompt, or a UTF-8 file with one prompt per line; `samples_per_prompt` videos are made of each."""

    prompt: str | None = None
    prompt_file: str | None = None
    samples_per_prompt: int = 1

    def __post_init__(self):
        require((self.prompt is None) != (self.prompt_file is None),
                "give a prompt or a prompt_file (--prompt TEXT or --prompt-file F), not both and not neither")
        require_at_least(self, 1, "samples_per_prompt")


def check_video_size(height, width, patch_size):
    """ValueError, naming the nearest valid sizes, where pixels do not fill whole patches of the latent."""
    for name, size, patch in (("height", height, patch_size[1]), ("width", width, patch_size[2])):
        multiple = SPATIAL_COMPRESSION * patch
        require(size > 0 and size % multiple == 0,
                f"video.{name} is {size}; it must be a multiple of {multiple}; "
                f"nearest valid: {nearest(size, multiple)}")


def latent_shape_of(video, vae):
    """[16, T, H/8, W/8] of one video of a VideoSection."""
    return (vae.z_dim, (video.frames - 1) // TEMPORAL_COMPRESSION + 1,
            video.height // SPATIAL_COMPRESSION, video.width // SPATIAL_COMPRESSION)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """One run of `generate`. `output_naming` is video_0000 (index) or PROMPT-INDEX, as VBench reads them (prompt).

    `adapter` is the folder of a LoRA adapter in PEFT's format, used beside the transformer's own weights.
    """

    run_mode: Literal["generate"]
    context: ContextSection = ContextSection()
    parallel_config: GenerateParallelSection = GenerateParallelSection()
    model: ModelSection
    sampling: SamplingSection
    video: VideoSection
    prompts: PromptsSection
    adapter: str | None = None
    output_dir: str
    output_naming: Literal["index", "prompt"] = "index"

    def __post_init__(self):
        check_video_size(self.video.height, self.video.width, self.model.dit.patch_size)
        require(self.sampling.guidance != 1 or not self.parallel_config.split_guidance,
                "parallel_config.split_guidance has nothing to split: sampling.guidance is 1, which is off")

    @property
    def latent_shape(self):
        """[16, T, H/8, W/8] of one video."""
        return latent_shape_of(self.video, self.model.vae)
