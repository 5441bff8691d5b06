"""Sections that several commands share: a frozen dataclass each, read from YAML by config/reader.py.

A default stands in its dataclass and nowhere else. Section names follow MindFormers where it has them.
"""

from dataclasses import dataclass
from typing import Literal

from ospnext_ms.config.checks import FreeText, require, require_at_least
from ospnext_ms.models.config import DiTConfig, UMT5Config, VAEConfig
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.models.sizes import Tiling, check_frames, check_pixels, latent_size

# Names of runtime.DTYPES.
ComputeDtype = Literal["fp32", "bf16"]
# Beyond it, all steps but the last few are taken in nearly pure noise.
MAX_SHIFT = 1000
MAX_STEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class ContextSection:
    """Device, execution mode and compute dtype; `auto` is Ascend with bf16 where there is one, else CPU with fp32."""

    device_target: Literal["auto", "CPU", "Ascend"] = "auto"
    mode: Literal["graph", "pynative"] = "graph"
    dtype: Literal["auto", ComputeDtype] = "auto"


@dataclass(frozen=True, kw_only=True)
class ParallelSection:
    """How the processes that msrun started share the work (see ospnext_ms.parallel.mesh).

    `skiparse_parallel` x `ulysses_parallel` processes share a video; `data_parallel` such groups work on different
    ones (null: as many as there are). Each weight of the transformer is spread over `parameter_shard` processes (1:
    every process has all weights). `switch_dtype` is what a switch between token and group blocks sends: null the
    residual stream as it is; fp16 and bf16 halve an fp32 stream's bytes, and fp16 rounds to an eighth of bf16.
    """

    data_parallel: int | None = None
    skiparse_parallel: int = 1
    ulysses_parallel: int = 1
    parameter_shard: int = 1
    switch_dtype: Literal["fp16", "bf16"] | None = None

    def __post_init__(self):
        require_at_least(self, 1, "data_parallel", "skiparse_parallel", "ulysses_parallel", "parameter_shard")


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
        require((self.tile_size is None) == (self.tile_overlap is None),
                "tile_size and tile_overlap are given together or not at all")
        _ = self.tiling  # which checks them

    @property
    def tiling(self) -> Tiling | None:
        """The Tiling, None where frames are worked on whole."""
        if self.tile_size is None or self.tile_overlap is None:
            return None
        return Tiling(self.tile_size, self.tile_overlap)


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
        check_networks(self.dit, self.vae, self.text_encoder)


def check_networks(dit: DiTConfig, vae: VAEConfig | None, text_encoder: UMT5Config | None) -> None:
    """ValueError where networks do not fit one another; None fits everything."""
    require(text_encoder is None or text_encoder.dim == dit.text_dim,
            f"text_encoder.dim is {text_encoder and text_encoder.dim} but dit.text_dim is {dit.text_dim}; they must be "
            "equal")
    require(vae is None or vae.z_dim == dit.in_channels == dit.out_channels,
            f"vae.z_dim {vae and vae.z_dim}, dit.in_channels {dit.in_channels} and dit.out_channels "
            f"{dit.out_channels} must be equal")


@dataclass(frozen=True, kw_only=True)
class LoRASection(LoRAConfig):
    """Adapters; `checkpoint` is a PEFT adapter folder to start from (null: from adapters that change nothing)."""

    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class GuidedStepsSection:
    """Steps from noise to a latent. `guidance` 1 switches guidance off."""

    steps: int
    shift: float
    guidance: float
    negative_prompt: FreeText

    def __post_init__(self):
        require(1 <= self.steps <= MAX_STEPS, f"steps is {self.steps}; it must be at least 1 and at most {MAX_STEPS}")
        require(0 < self.shift <= MAX_SHIFT,
                f"shift is {self.shift}; it must be above 0 (1 changes nothing) and at most {MAX_SHIFT}")
        require(self.guidance >= 1, f"guidance is {self.guidance}; it must be at least 1 (which is off)")


@dataclass(frozen=True, kw_only=True)
class VideoSection:
    """Size of the videos in pixels and frames; `crf` is H.264's constant rate factor, lower is better and larger."""

    height: int
    width: int
    frames: int
    fps: int
    crf: int = 18

    def __post_init__(self):
        check_frames("frames", self.frames)
        require_at_least(self, 1, "fps")
        # 0 would be lossless, in a profile of H.264 (High 4:4:4) that hardly any player shows.
        require(1 <= self.crf <= 51, f"crf is {self.crf}; it must be from 1 (nearly lossless) to 51 (worst)")


def check_video_size(height: int, width: int, patch_size: tuple[int, int, int], section: str = "video") -> None:
    """ValueError, naming the nearest valid sizes, where pixels do not fill whole patches of the latent."""
    check_pixels(f"{section}.height", height, patch_size[1])
    check_pixels(f"{section}.width", width, patch_size[2])


def latent_shape_of(video: VideoSection, vae: VAEConfig) -> tuple[int, int, int, int]:
    """[16, T, H/8, W/8] of one video of a VideoSection."""
    return (vae.z_dim, *latent_size(video.height, video.width, video.frames))
