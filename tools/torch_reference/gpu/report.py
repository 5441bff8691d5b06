"""The benchmark's table and figure."""

import json
from pathlib import Path


def ideal_seconds(flops, ceilings, gpus=1, eight_bit=()):
    """Time of the counted operations at the ceilings of matrix products and attention, everything else free.

    `eight_bit` names what of "matmul" and "attention" runs on e4m3 codes.
    """
    def ceiling(name):
        return ceilings[f"{name}_8bit" if name in eight_bit else name]

    return (flops["linear"] / ceiling("matmul") + flops["attention"] / ceiling("attention")) / gpus


def summarise(result):
    """Rows of the table, each against the fastest full run on as many GPUs: speed-up, FLOP ratio, share of ceilings.

    `scaling` is the fastest time of the mode on one GPU over GPUs times this time, where the run measured both.
    """
    measured = [dict(row, gpus=row.get("gpus", 1)) for row in result["measurements"]]

    def fastest(mode, gpus):
        return min((row for row in measured if (row["mode"], row["gpus"]) == (mode, gpus)),
                   key=lambda row: row["median"], default=None)

    rows = []
    for row in measured:
        summary = dict(row, spread=(max(row["seconds"]) - min(row["seconds"])) / 2,
                       tflops=row["flops"]["total"] / row["median"] / 1e12 / row["gpus"])
        full, alone = fastest("full", row["gpus"]), fastest(row["mode"], 1)
        if full:
            summary["speed_up"] = full["median"] / row["median"]
            summary["flop_ratio"] = full["flops"]["total"] / row["flops"]["total"]
        if alone and row["gpus"] > 1:
            summary["scaling"] = alone["median"] / (row["gpus"] * row["median"])
        measured_ceilings = result.get("ceilings") or {}
        for name, ceilings in (("share", measured_ceilings), ("sustained", measured_ceilings.get("sustained"))):
            if ceilings and _is_at_ceilings_of(row, ceilings):
                ideal = ideal_seconds(row["flops"], ceilings, row["gpus"], row.get("eight_bit", ()))
                summary[name] = row.get("passes", 1) * ideal / row["median"]
        if row["mode"].startswith("sparse"):
            summary["paper"] = {int(gpus): figure for gpus, figure in result["paper"].items()}.get(row["gpus"])
        summary["release"] = result["release"].get(row["mode"]) if row["gpus"] == 1 else None
        rows.append(summary)
    return rows


def _is_at_ceilings_of(row, ceilings):
    """Whether every product of the row has a ceiling."""
    return not row.get("keep_bf16") and all(f"{name}_8bit" in ceilings for name in row.get("eight_bit", ()))


def options_of(row):
    """What else is not the default: "keep 1, bf16 stream, switch e4m3"."""
    options = [f"keep {row['keep_bf16']}"] if row.get("keep_bf16") else []
    options += [f"{row['residual']} stream"] if row.get("residual", "fp32") != "fp32" else []
    options += [f"switch {row['switch_dtype']}"] if row.get("switch_dtype") and row["degrees"][0] > 1 else []
    return ", ".join(options)


def layout_of(row):
    """"1" for one GPU, else S x U and the exchange of Ulysses."""
    degrees = row.get("degrees") or (1, 1)
    return "1" if row.get("gpus", 1) == 1 else f"{degrees[0]}x{degrees[1]} {row['exchange']}"


def print_table(result):
    """One line a measurement. `of ceiling` is the time of the counted operations at the ceilings over the time, the
    ceilings being those of single calls and of sustained load; `TFLOP/s` and `sent` are those of one GPU.
    """
    print(f"\n{result['setting']}, {result['model']}, grid {tuple(result['grid'])}, {result['gpus']} GPU(s), "
          f"{result['machine']}")
    print(f"{'mode':<32}{'kernels':<10}{'GPUs (SxU)':<16}{'seconds':>15}{'TFLOP/s':>9}{'of ceiling':>12}"
          f"{'sustained':>11}{'peak GiB':>10}{'sent MB':>9}{'speed-up':>10}{'FLOP ratio':>12}{'paper':>7}"
          f"{'release s':>11}{'scaling':>9}  options")
    for row in summarise(result):
        print(f"{row['mode']:<32}{row['kernels']:<10}{layout_of(row):<16}{row['median']:>8.3f} ±{row['spread']:>5.3f}"
              f"{row['tflops']:>9.0f}{_cell(row.get('share'), '.1%'):>12}{_cell(row.get('sustained'), '.1%'):>11}"
              f"{_cell(row['peak_memory_gib'], '.1f'):>10}"
              f"{row['bytes_sent'] / 1e6:>9.0f}{_cell(row.get('speed_up'), '.2f'):>10}"
              f"{_cell(row.get('flop_ratio'), '.2f'):>12}{_cell(row.get('paper'), '.2f'):>7}"
              f"{_cell(row['release'], '.2f'):>11}{_cell(row.get('scaling'), '.1%'):>9}  {options_of(row)}")
    for row in result["measurements"]:
        if "error" in row:
            print(f"{row['mode']} {options_of(row)}: relative error of the output against bf16 {row['error']:.2e}")
    for error in result["errors"]:
        print(f"FAILED {error['name']}")
    for check in result.get("checks", []):
        if not check["passed"]:
            print(f"FAILED check {check['name']}")


def _cell(value, form):
    return "-" if value is None else format(value, form)


def _bar_label(row, gpus):
    """Mode and, in a run on several GPUs, how many and which layout; the faster exchange of Ulysses gets the bar."""
    mode = row["mode"].replace("-", "\n")
    if gpus == 1:
        return mode
    return f"{mode}\n1 GPU" if row["gpus"] == 1 else f"{mode}\n{row['gpus']} GPUs\n{layout_of(row).split()[0]}"


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
    figure, axes = plt.subplots(1, len(paths), figsize=(5 * len(paths), 4.5), squeeze=False)
    for axis, path in zip(axes[0], paths, strict=True):
        result = json.loads(path.read_text())
        rows = {}
        for row in summarise(result):
            label = _bar_label(row, result["gpus"])
            if label not in rows or row["median"] < rows[label]["median"]:
                rows[label] = row
        heights = [row["median"] for row in rows.values()]
        colours = {"full": "tab:gray", "sparse": "tab:blue"}
        axis.bar(list(rows), heights, yerr=[row["spread"] for row in rows.values()],
                 color=[colours.get(row["mode"], "tab:orange") for row in rows.values()])
        axis.tick_params(axis="x", labelsize=7)
        for position, row in enumerate(rows.values()):
            if "speed_up" in row:
                axis.annotate(f"{row['speed_up']:.2f}x", (position, row["median"]), ha="center", va="bottom",
                              fontsize=8)
        figures = [row["paper"] for row in rows.values() if row.get("paper") and row["gpus"] == result["gpus"]]
        paper = f", paper {figures[0]:.2f}x" if figures else ""
        axis.set_title(f"{result['setting']}{paper}")
        axis.set_ylabel("seconds a forward (median)")
        axis.set_ylim(0, 1.15 * max(heights, default=1))
    figure.tight_layout()
    figure.savefig(target, dpi=150)
