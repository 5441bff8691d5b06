"""What `prepare-data` can be told. A default stands in its dataclass and nowhere else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ospnext_ms.config.checks import require, require_above_0, require_at_least, require_seed
from ospnext_ms.config.sections import ContextSection, TextEncoderSection, VAESection
from ospnext_ms.models.sizes import check_frames, check_pixels


@dataclass(frozen=True, kw_only=True)
class EncodersSection:
    """The networks that make the cache; text_len is the most tokens of a text. No VAE where the cache holds videos."""

    vae: VAESection | None = None
    text_encoder: TextEncoderSection
    text_len: int

    def __post_init__(self):
        require_at_least(self, 1, "text_len")


@dataclass(frozen=True, kw_only=True)
class FiltersSection:
    """What a video must be; null is no limit. Sizes in pixels as shown, aspect is width/height, seconds are those of
    the frames to use, motion is in percent of the width per second (see data.clips.measure_motion). Interlaced and HDR
    videos are taken as they are, and counted in the report, unless they are not allowed."""

    min_height: int | None = None
    min_width: int | None = None
    min_aspect: float | None = None
    max_aspect: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    min_motion: float | None = None
    max_motion: float | None = None
    allow_interlaced: bool = True
    allow_hdr: bool = True

    def __post_init__(self):
        for name in ("aspect", "seconds", "motion"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            require(low is None or high is None or low <= high, f"min_{name} {low} is above max_{name} {high}")


@dataclass(frozen=True, kw_only=True)
class ClipsSection:
    """How clips are cut from videos.

    buckets: list of [height, width, frames]; a clip goes into the one whose shape costs it least, so there are at most
    as many compilations in training. fps: of the clips; slower videos are left out. clips_per_video: at most so many,
    from equal parts of the video, each at a random time in its part (by `seed`). upscale: also use videos smaller than
    a bucket. max_cut: largest share of a picture that cutting to the bucket's shape may cost.
    """

    buckets: tuple[tuple[int, int, int], ...]
    fps: float
    clips_per_video: int = 1
    seed: int = 0
    upscale: bool = False
    max_cut: float = 0.2

    def __post_init__(self):
        require(self.buckets, "buckets is empty; give [height, width, frames] at least once")
        for bucket in self.buckets:
            check_bucket(bucket)
        require(len(set(self.buckets)) == len(self.buckets), "a bucket is given twice")
        require_above_0(self, "fps")
        require_at_least(self, 1, "clips_per_video")
        require_seed(self, "seed")
        require(0 <= self.max_cut < 1, f"max_cut is {self.max_cut}; it must be from 0 to below 1")


def check_bucket(bucket: tuple[int, int, int]) -> None:
    """ValueError, with the nearest valid ones, where (height, width, frames) do not fill whole patches and latent
    frames."""
    height, width, frames = bucket
    for name, size in (("height", height), ("width", width)):
        check_pixels(f"a video's {name}", size, patch=2)
    check_frames("a video's number of frames", frames)


@dataclass(frozen=True, kw_only=True)
class CacheSection:
    """What is stored. contents "videos" checks and lists the clips and stores only texts: training then decodes and
    encodes its clips itself, at new random times every epoch. A shard covers `entries_per_shard` lines."""

    contents: Literal["latents", "videos"] = "latents"
    dtype: Literal["fp32", "fp16"] = "fp16"
    entries_per_shard: int = 256

    def __post_init__(self):
        require_at_least(self, 1, "entries_per_shard")


@dataclass(frozen=True, kw_only=True)
class PrepareDataConfig:
    """One run of `prepare-data`. Paths of the manifest are relative to `video_root`, by default the manifest's folder.
    workers: processes that decode, beside the one that encodes; 0 decodes in that one."""

    run_mode: Literal["prepare_data"]
    context: ContextSection = ContextSection()
    model: EncodersSection
    manifest: str
    video_root: str | None = None
    filters: FiltersSection = FiltersSection()
    clips: ClipsSection
    cache: CacheSection = CacheSection()
    workers: int
    output_dir: str

    def __post_init__(self):
        has_vae, needs_vae = self.model.vae is not None, self.cache.contents == "latents"
        require(has_vae == needs_vae, f"cache.contents is {self.cache.contents}: model.vae "
                                      + ("is missing" if needs_vae else "is not used; set it to null"))
        require_at_least(self, 0, "workers")

    @property
    def folder_of_videos(self) -> Path:
        """Where the manifest's paths begin."""
        return Path(self.manifest).parent if self.video_root is None else Path(self.video_root)
