"""What `prepare-data` tells about a data set: how much there is of what, and what was left out and why."""

from collections import Counter

import numpy as np

from ospnext_ms.preparation.selection import NOTED

_ABOUT = {"interlaced": "interlaced: their two fields show as combs where something moves",
          "hdr": "HDR: taken as they are they look pale and dark"}


def make_report(config, num_entries, records, left_out, seconds):
    """The report as plain values.

    Args:
        config: PrepareDataConfig. num_entries: lines of the manifest.
        records: of the samples. left_out: dicts with line, path, reason and detail.
        seconds: of the stages of this run (a resumed one did part of the work only).
    """
    buckets = Counter(record["bucket"] for record in records)
    clip_seconds = {i: frames / config.clips.fps for i, (_, _, frames) in enumerate(config.clips.buckets)}
    motion = [record["motion"] for record in records]
    return {
        "manifest": config.manifest,
        "contents": config.cache.contents,
        "videos": num_entries,
        "videos_used": len({record["line"] for record in records}),
        "clips": len(records),
        "clip_hours": round(sum(clip_seconds[record["bucket"]] for record in records) / 3600, 4),
        "buckets": [{"height": height, "width": width, "frames": frames, "clips": buckets[i]}
                    for i, (height, width, frames) in enumerate(config.clips.buckets)],
        "motion": _quantiles(motion),
        **{name: len({record["line"] for record in records if record.get(name)}) for name in NOTED},
        "left_out_counts": dict(Counter(item["reason"] for item in left_out).most_common()),
        "left_out": left_out,
        "seconds_of_this_run": {name: round(value, 2) for name, value in seconds.items()},
    }


def summary(report, most=20):
    """The report as text; of what was left out at most `most` items are named, report.json has all."""
    lines = [f"{report['clips']} clips ({report['clip_hours']:.2f} h) of {report['videos_used']} of "
             f"{report['videos']} videos"]
    lines += [f"  {bucket['clips']:8d} x {bucket['height']}x{bucket['width']}, {bucket['frames']} frames"
              for bucket in report["buckets"]]
    lines += [f"{report[name]} videos are {text} (filters.allow_{name}: false leaves them out)"
              for name, text in _ABOUT.items() if report[name]]
    lines += [f"left out: {count} x {reason}" for reason, count in report["left_out_counts"].items()]
    lines += [f"  line {item['line']}: {item['path']}: {item['reason']}: {item['detail']}"
              for item in report["left_out"][:most]]
    if len(report["left_out"]) > most:
        lines.append(f"  and {len(report['left_out']) - most} more, see report.json")
    times = ", ".join(f"{name} {value} s" for name, value in report["seconds_of_this_run"].items())
    return "\n".join([*lines, f"this run: {times}"])


def _quantiles(values):
    if not values:
        return None
    return {f"{share:.0%}": round(float(np.quantile(values, share)), 3) for share in (0, 0.1, 0.5, 0.9, 1)}
