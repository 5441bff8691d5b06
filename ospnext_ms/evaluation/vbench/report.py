"""The total as a table, as JSON and as a figure."""

import json
from pathlib import Path

from ospnext_ms.evaluation.vbench.dimensions import DIMENSIONS, share_of_total
from ospnext_ms.evaluation.vbench.total import PUBLISHED, Total
from ospnext_ms.reporting.curves import new_figure, save_figure
from ospnext_ms.storage.files import atomic_path

TOTAL_JSON, TOTAL_FIGURE = "vbench_total.json", "vbench_total.png"
_COLOURS = {"quality": "tab:blue", "semantic": "tab:orange"}


def table(total: Total) -> str:
    """Lines for people, in percent; the last column says how far the total moves with one point of a dimension."""
    lines = [f"{'dimension':<24}{'score':>8}{'normalised':>12}{'per point':>11}"]
    for name, dimension in DIMENSIONS.items():
        lines.append(f"{dimension.title:<24}{100 * total.scores[name]:>8.2f}{100 * total.normalised[name]:>12.2f}"
                     f"{share_of_total(dimension):>11.3f}")
    lines += ["", f"{'quality':<24}{100 * total.quality:>8.2f}", f"{'semantic':<24}{100 * total.semantic:>8.2f}",
              f"{'total':<24}{100 * total.total:>8.2f}", ""]
    for name, published in PUBLISHED.items():
        lines.append(f"{name + ' (paper)':<24}{published:>8.2f}{100 * total.total - published:>+12.2f}")
    return "\n".join(lines)


def as_json(total: Total) -> dict:
    """The same in fractions, with what the paper published, in percent as it does."""
    return {
        "total": total.total, "quality": total.quality, "semantic": total.semantic,
        "dimensions": {name: {"score": total.scores[name], "normalised": total.normalised[name]}
                       for name in DIMENSIONS},
        "published_percent": PUBLISHED,
    }


def write_report(total: Total, folder: str | Path) -> list[Path]:
    """Writes vbench_total.json and vbench_total.png into a folder; returns their paths."""
    folder = Path(folder)
    with atomic_path(folder / TOTAL_JSON) as temporary:
        temporary.write_text(json.dumps(as_json(total), indent=2) + "\n", encoding="utf-8")
    return [folder / TOTAL_JSON, draw(total, folder / TOTAL_FIGURE)]


def draw(total: Total, path: Path) -> Path:
    """Draws the normalised dimensions as bars with their raw scores, and the totals beside the paper's."""
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    dimensions = list(DIMENSIONS.values())
    for group, colour in _COLOURS.items():
        rows = [i for i, dimension in enumerate(dimensions) if dimension.group == group]
        left.barh(rows, [100 * total.normalised[dimensions[i].name] for i in rows], color=colour)
    for row, dimension in enumerate(dimensions):
        left.text(1, row, f"{100 * total.scores[dimension.name]:.2f}", va="center", fontsize=7, color="white")
    left.set(yticks=range(len(dimensions)), yticklabels=[d.title for d in dimensions], xlabel="normalised, %",
             title="dimensions (in the bars: raw scores)",
             xlim=(100 * min(0.0, *total.normalised.values()), 100 * max(1.0, *total.normalised.values())))
    left.invert_yaxis()
    names = ["quality", "semantic", "total", *("\n".join([*name.split(), "(paper)"]) for name in PUBLISHED)]
    values = [*(100 * value for value in (total.quality, total.semantic, total.total)), *PUBLISHED.values()]
    bars = right.bar(range(len(names)), values, color=[*_COLOURS.values(), "tab:green", *["tab:gray"] * len(PUBLISHED)])
    right.bar_label(bars, fmt="%.2f", fontsize=8)
    right.set(xticks=range(len(names)), ylabel="%", title=f"VBench total {100 * total.total:.2f}")
    right.set_xticklabels(names, fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x" if axes is left else "y")
    return save_figure(figure, path)
