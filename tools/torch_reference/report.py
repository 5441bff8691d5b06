"""The benchmark's table and figure."""

import json
from pathlib import Path


def ideal_seconds(flops, ceilings, gpus=1):
    """Time of the counted operations at the ceilings of matrix products and attention, everything else free."""
    return (flops["linear"] / ceilings["matmul"] + flops["attention"] / ceilings["attention"]) / gpus


def summarise(result):
    """Rows of the table: the measurements with speed-up over the fastest full run, FLOP ratio and share of ceilings."""
    rows = []
    full = min((row["median"] for row in result["measurements"] if row["mode"] == "full"), default=None)
    full_flops = next((row["flops"]["total"] for row in result["measurements"] if row["mode"] == "full"), None)
    for row in result["measurements"]:
        summary = dict(row, spread=(max(row["seconds"]) - min(row["seconds"])) / 2,
                       tflops=row["flops"]["total"] / row["median"] / 1e12 / result["gpus"])
        if full:
            summary["speed_up"] = full / row["median"]
            summary["flop_ratio"] = full_flops / row["flops"]["total"]
        if result.get("ceilings"):
            ideal = ideal_seconds(row["flops"], result["ceilings"], result["gpus"])
            summary["share"] = row.get("passes", 1) * ideal / row["median"]
        rows.append(summary)
    return rows


def print_table(result):
    """One line a measurement. `of ceiling` is the time of the counted operations at the ceilings over the time."""
    print(f"\n{result['setting']}, {result['model']}, grid {tuple(result['grid'])}, {result['gpus']} GPU(s), "
          f"{result['machine']}")
    print(f"{'mode':<13}{'kernels':<10}{'seconds':>16}{'TFLOP/s':>9}{'of ceiling':>12}{'peak GiB':>10}{'sent MB':>9}"
          f"{'speed-up':>10}{'FLOP ratio':>12}{'paper':>7}{'release s':>11}")
    for row in summarise(result):
        sparse = row["mode"].startswith("sparse")
        release = result["release"].get(row["mode"])
        print(f"{row['mode']:<13}{row['kernels']:<10}{row['median']:>9.3f} ±{row['spread']:>5.3f}{row['tflops']:>9.0f}"
              f"{_cell(row.get('share'), '.1%'):>12}{_cell(row['peak_memory_gib'], '.1f'):>10}"
              f"{row['bytes_sent'] / 1e6:>9.0f}{_cell(row.get('speed_up'), '.2f'):>10}"
              f"{_cell(row.get('flop_ratio'), '.2f'):>12}{_cell(result['paper'] if sparse else None, '.2f'):>7}"
              f"{_cell(release, '.2f'):>11}")
    for row in result["measurements"]:
        if "error" in row:
            print(f"{row['mode']}: relative error of the output against bf16 linears {row['error']:.2e}")
    for error in result["errors"]:
        print(f"FAILED {error['name']}")
    for check in result.get("checks", []):
        if not check["passed"]:
            print(f"FAILED check {check['name']}")


def _cell(value, form):
    return "-" if value is None else format(value, form)


def plot(folder, target):
    """Draws every forward JSON of `folder` as bars of seconds, with the speed-up over full written on top.

    Raises FileNotFoundError where the folder holds none.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = sorted(Path(folder).glob("*_forward_*.json"))
    if not paths:
        raise FileNotFoundError(f"no *_forward_*.json in {folder}")
    figure, axes = plt.subplots(1, len(paths), figsize=(4 * len(paths), 4), squeeze=False)
    for axis, path in zip(axes[0], paths, strict=True):
        result = json.loads(path.read_text())
        rows = {}
        for row in summarise(result):
            if row["mode"] not in rows or row["median"] < rows[row["mode"]]["median"]:
                rows[row["mode"]] = row
        heights = [row["median"] for row in rows.values()]
        axis.bar(list(rows), heights, yerr=[row["spread"] for row in rows.values()],
                 color=["tab:gray", "tab:blue", "tab:orange"][: len(rows)])
        for position, row in enumerate(rows.values()):
            if "speed_up" in row:
                axis.annotate(f"{row['speed_up']:.2f}x", (position, row["median"]), ha="center", va="bottom")
        paper = f", paper {result['paper']:.2f}x" if result["paper"] else ""
        axis.set_title(f"{result['setting']}, {result['gpus']} GPU(s){paper}")
        axis.set_ylabel("seconds a forward (median)")
        axis.set_ylim(0, 1.15 * max(heights, default=1))
    figure.tight_layout()
    figure.savefig(target, dpi=150)
