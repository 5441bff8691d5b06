"""Loss curves of the training logs as one PNG (needs matplotlib):

    python -m tools.tiny_family.plot DIR/vae.json DIR/dit_full.json DIR/dit_sparse.json --output curves.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

SMOOTHED_POINTS = 9


def smoothed(values, width=SMOOTHED_POINTS):
    """Centred running mean; windows are cut at the ends."""
    values = np.asarray(values, float)
    half = width // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def plot(paths, output):
    """One panel a log, loss over training seconds, thin as measured and thick as running mean."""
    figure, panels = plt.subplots(1, len(paths), figsize=(5 * len(paths), 3.5), squeeze=False)
    for panel, path in zip(panels[0], paths, strict=True):
        records = json.loads(Path(path).read_text())["records"]
        seconds = [record["seconds"] for record in records]
        loss = [record["loss"] for record in records]
        panel.plot(seconds, loss, linewidth=0.5, color="tab:gray")
        panel.plot(seconds, smoothed(loss), linewidth=1.5)
        panel.set(title=f"{Path(path).stem}, {records[-1]['step']:,} steps", xlabel="seconds", ylabel="loss",
                  yscale="log")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(output, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    plot(arguments.logs, arguments.output)


if __name__ == "__main__":
    main()
