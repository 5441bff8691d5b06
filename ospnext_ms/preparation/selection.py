"""Which videos become clips, of which shape, and which are left out and why. Runs in worker processes, so it needs no
framework."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ospnext_ms.data.clips import check_decodes, clip_span, draw_start, measure_motion, probe, read_clip
from ospnext_ms.data.manifest import Entry

# Reasons as they are counted in the report.
MISSING, UNREADABLE, CRASHED = "no such file", "unreadable", "the decoder crashed"
SHORT, LONG, SMALL, SHAPE = "too short", "too long", "too small", "aspect ratio"
SLOW_RATE, MOTION = "frame rate below the target", "motion"
INTERLACED, HDR = "interlaced", "HDR"
# Properties of a video that are noted in a clip's record.
NOTED = ("interlaced", "hdr")
# Rates such as 23.976 count as 24, and 29.97 as 30.
_RATE_TOLERANCE = 0.005


@dataclass(frozen=True)
class LeftOut:
    """An entry, or one clip of it, that is not in the data set: manifest line, path, reason, and the figures."""

    line: int
    path: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Clip:
    """A clip that is: its name, what the report and the cache say about it, and its frames uint8 [F, H, W, 3]."""

    name: str
    record: dict
    frames: np.ndarray | None


class _Rejected(Exception):
    """(reason, detail)"""


def load_entry(entry: Entry, config) -> tuple[list, list]:
    """Everything a manifest entry gives: (list of Clip, list of LeftOut). Never raises for what a video file holds.

    Args:
        entry: of the manifest. config: PrepareDataConfig.
    """
    path = Path(config.folder_of_videos) / entry.path
    try:
        info = probe(path)
        start, stop = _window(entry, info)
        bucket = _choose_bucket(info, stop - start, config)
    except _Rejected as rejected:
        return [], [LeftOut(entry.line, entry.path, *rejected.args)]
    except FileNotFoundError as error:
        return [], [LeftOut(entry.line, entry.path, MISSING, str(error))]
    except (ValueError, OSError) as error:
        return [], [LeftOut(entry.line, entry.path, UNREADABLE, str(error))]
    clips, left_out = [], []
    for number, part in enumerate(_parts(start, stop, info, bucket, config)):
        try:
            clips.append(_load_clip(entry, number, path, info, part, bucket, config))
        except _Rejected as rejected:
            left_out.append(LeftOut(entry.line, entry.path, *rejected.args))
        except (ValueError, OSError) as error:
            # What cannot be read in one place is not trusted in another.
            return [], [LeftOut(entry.line, entry.path, UNREADABLE, str(error))]
    return clips, left_out


def _window(entry, info):
    start = info.time_of(entry.start_frame) if entry.start is None else entry.start
    stop = info.seconds if entry.end_frame is None else info.time_of(entry.end_frame)
    stop = stop if entry.end is None else min(entry.end, stop)
    if start >= stop:
        wanted = f"start_frame {entry.start_frame}" if entry.start is None else f"start {entry.start} s"
        raise _Rejected(SHORT, f"it ends at {info.seconds:.2f} s, before {wanted}")
    return start, stop


def _choose_bucket(info, seconds, config):
    """Position of the bucket that a video fits best. _Rejected where it passes the filters or fits none."""
    filters, clips = config.filters, config.clips
    aspect = info.width / info.height
    _check(SMALL, "height", info.height, filters.min_height, None)
    _check(SMALL, "width", info.width, filters.min_width, None)
    _check(SHAPE, "width/height", aspect, filters.min_aspect, filters.max_aspect)
    _check(SHORT, "seconds", seconds, filters.min_seconds, None)
    _check(LONG, "seconds", seconds, None, filters.max_seconds)
    if info.interlaced and not filters.allow_interlaced:
        raise _Rejected(INTERLACED, "its frames are made of two fields; filters.allow_interlaced is false")
    if info.hdr and not filters.allow_hdr:
        raise _Rejected(HDR, "its brightness is that of HDR (PQ or HLG); filters.allow_hdr is false")
    # A single picture has no rate.
    if len(info.times) > 1 and info.fps < clips.fps * (1 - _RATE_TOLERANCE):
        raise _Rejected(SLOW_RATE, f"{info.fps:.3f} frames per second; the target is {clips.fps}")
    # Half a millisecond for the rounding of times in containers.
    fitting = [i for i, (_, _, frames) in enumerate(clips.buckets)
               if clip_span(frames, clips.fps, info.fps) <= seconds + 5e-4]
    if not fitting:
        raise _Rejected(SHORT, f"{seconds:.2f} s at {info.fps:.3f} frames per second fill no bucket at {clips.fps}")
    large = [i for i in fitting if clips.upscale or _is_large_enough(info, clips.buckets[i])]
    if not large:
        raise _Rejected(SMALL, f"{info.width}x{info.height} fills no bucket")
    shaped = [i for i in large if _cut_share(info, clips.buckets[i]) <= clips.max_cut]
    if not shaped:
        least = min(_cut_share(info, clips.buckets[i]) for i in large)
        raise _Rejected(SHAPE, f"{info.width}x{info.height} would lose {least:.0%} at least; max_cut is "
                               f"{clips.max_cut:.0%}")
    # The least loss; among equals the most pixels, then the most frames.
    return min(shaped, key=lambda i: (round(_cut_share(info, clips.buckets[i]), 3),
                                      -clips.buckets[i][0] * clips.buckets[i][1], -clips.buckets[i][2]))


def _check(reason, name, value, lowest, highest):
    if lowest is not None and value < lowest:
        raise _Rejected(reason, f"{name} {value:.4g} is below {lowest}")
    if highest is not None and value > highest:
        raise _Rejected(reason, f"{name} {value:.4g} is above {highest}")


def _is_large_enough(info, bucket):
    return info.height >= bucket[0] and info.width >= bucket[1]


def _cut_share(info, bucket):
    """Share of the picture that is lost when it is cut to the bucket's shape."""
    ratio = info.width / info.height / (bucket[1] / bucket[0])
    return 1 - min(ratio, 1 / ratio)


def _parts(start, stop, info, bucket, config):
    """The window cut into as many equal parts as clips are wanted and fit: clips of one video do not overlap."""
    span = clip_span(config.clips.buckets[bucket][2], config.clips.fps, info.fps)
    count = max(1, min(config.clips.clips_per_video, int((stop - start) / span)))
    edges = np.linspace(start, stop, count + 1).tolist()
    return list(zip(edges, edges[1:], strict=False))


def _load_clip(entry, number, path, info, part, bucket, config):
    height, width, frames = config.clips.buckets[bucket]
    rng = np.random.default_rng([config.clips.seed, entry.line, number])
    begin = draw_start(rng, part, frames, config.clips.fps, info.fps)
    clip = read_clip(path, begin, config.clips.fps, frames, height, width)
    motion = measure_motion(clip, config.clips.fps)
    _check(MOTION, "motion", motion, config.filters.min_motion, config.filters.max_motion)
    record = {"name": f"{entry.line:08d}-{number}", "line": entry.line, "path": entry.path, "bucket": bucket,
              "start": begin, "motion": round(motion, 3), "part": list(part), "fps": info.fps}
    # Said of those that are, so that the report can count them.
    record |= {name: True for name in NOTED if getattr(info, name)}
    if config.cache.contents == "latents":
        return Clip(record["name"], record, clip)
    check_decodes(path, *part)
    return Clip(record["name"], record, None)
