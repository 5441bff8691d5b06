"""Sizes of videos, of their latents and of tiles: what fits Wan2.1's VAE. Framework-free."""

from dataclasses import dataclass

# Pixels and frames of video for one of the latent.
SPATIAL_COMPRESSION = 8
TEMPORAL_COMPRESSION = 4
# Far above what any device can hold: a slip of the keyboard should not cost gigabytes before it is noticed.
MAX_PIXELS, MAX_FRAMES = 2**14, 2**13 + 1


def latent_frames(frames: int) -> int:
    """Frames of the latent of so many frames of video."""
    return (frames - 1) // TEMPORAL_COMPRESSION + 1


def latent_size(height: int, width: int, frames: int) -> tuple[int, int, int]:
    """(T, h, w) of the latent of a video in pixels and frames."""
    return (latent_frames(frames), height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION)


def video_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(height, width, frames) of the video of a latent (T, h, w)."""
    return (SPATIAL_COMPRESSION * height, SPATIAL_COMPRESSION * width, TEMPORAL_COMPRESSION * (frames - 1) + 1)


def check_frames(name: str, frames: int) -> None:
    """ValueError, with the nearest valid numbers, unless `frames` of video fill whole frames of the latent."""
    step = TEMPORAL_COMPRESSION
    if frames % step != 1 or not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"{name} is {frames}; it must be {step}k+1 and at most {MAX_FRAMES}; "
                         f"nearest valid: {_nearest(frames, step, 1, 1, MAX_FRAMES)}")


def check_pixels(name: str, size: int, patch: int = 1) -> None:
    """ValueError, with the nearest valid sizes, unless `size` pixels fill whole patches of `patch` latent pixels."""
    multiple = SPATIAL_COMPRESSION * patch
    if size % multiple or not 1 <= size <= MAX_PIXELS:
        raise ValueError(f"{name} is {size}; it must be a multiple of {multiple} and at most {MAX_PIXELS}; "
                         f"nearest valid: {_nearest(size, multiple, 0, multiple, MAX_PIXELS)}")


@dataclass(frozen=True)
class Tiling:
    """Square tiles of `tile_size` pixels of video that overlap by at least `tile_overlap` pixels.

    Raises:
        ValueError: a size that is not a multiple of 8 pixels (one latent pixel), or an overlap that is not smaller
            than the tile.
    """

    tile_size: int
    tile_overlap: int

    def __post_init__(self):
        check_pixels("tile_size", self.tile_size)
        overlap, unit, most = self.tile_overlap, SPATIAL_COMPRESSION, self.tile_size - SPATIAL_COMPRESSION
        if not 0 <= overlap <= most or overlap % unit:
            raise ValueError(f"tile_overlap is {overlap}; it must be a multiple of {unit} from 0 to {most}; "
                             f"nearest valid: {_nearest(overlap, unit, 0, 0, most)}")


def _nearest(value: int, step: int, offset: int, lowest: int, highest: int) -> str:
    """Text that names the valid values k*step + offset around `value`, from `lowest` to `highest`."""
    below = (value - offset) // step * step + offset
    return " and ".join(map(str, sorted({min(max(valid, lowest), highest) for valid in (below, below + step)})))
