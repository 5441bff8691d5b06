r"""What saving checkpoints costs a training run, measured on one:

    python -m tools.experiments.save_overhead --config yaml_configs/train/tiny.yaml --set output_dir=output/overhead \
        --set eval_dataset=null --set runner_config.steps=80 --set callbacks.save_checkpoint_steps=10

Steps that began while a checkpoint was being copied or written are compared with the median of the others. The first
steps of a run, in which it compiles and tries numbers of threads, are left out.
"""

import argparse
import time

import numpy as np

from ospnext_ms.commands.options import add_config_options
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.parallel.degrees import check_parallel, world_size
from ospnext_ms.reporting.clock import STEPS_OF_TRIALS
from ospnext_ms.reporting.metrics import read_metrics
from ospnext_ms.runtime import start_run
from ospnext_ms.training.loop import Trainer


class WatchedTrainer(Trainer):
    """A Trainer that remembers, for every step, whether a checkpoint was being written when it began, and how long
    the training thread had stood still for it: `saves` {step from 1: (saving, seconds)}."""

    def __init__(self, *arguments):
        self.saves, self._stood_still = {}, 0.0
        super().__init__(*arguments)

    def train_step(self, inputs):
        """See Trainer."""
        self.saves[self.steps_done + 1] = (self.store.saving, self._stood_still)
        self._stood_still = 0.0
        return super().train_step(inputs)

    def save(self):
        """See Trainer."""
        began = time.perf_counter()
        super().save()
        self._stood_still = time.perf_counter() - began


def overheads(seconds, saves):
    """[(first step, steps overlapped, seconds the training thread stood still, extra seconds over median steps)] and
    the median seconds of undisturbed steps.

    Args:
        seconds: {step: its seconds}, without the first ones. saves: of WatchedTrainer.
    """
    median = float(np.median([value for step, value in seconds.items() if not any(saves[step])]))
    found = []
    for step, value in seconds.items():
        saving, stood_still = saves[step]
        if stood_still:
            found.append([step, 1, stood_still, value - median])
        elif saving and found:
            found[-1][1] += 1
            found[-1][3] += value - median
    return found, median


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_options(parser, "yaml_configs/train", "runner_config.steps=80")
    options = parser.parse_args()
    config = load_config(TrainConfig, options.config, options.overrides)
    check_parallel(config.parallel_config, config.model.dit, world_size())
    trainer = WatchedTrainer(config, *start_run(config))
    trainer.run()
    steps = [record for record in read_metrics(config.output_dir) if "loss" in record][STEPS_OF_TRIALS:]
    saves, median = overheads({record["step"]: record["step_seconds"] for record in steps}, trainer.saves)
    print(f"undisturbed steps: median {median:.4f} s")
    for step, count, still, extra in saves:
        print(f"save before step {step}: overlaps {count} steps, stood still {still:.4f} s, "
              f"lengthened them by {extra:+.4f} s in all ({100 * extra / (count * median):+.1f} %)")
    if saves:
        share = sum(extra for *_, extra in saves) / (median * sum(count for _, count, *_ in saves))
        print(f"all {len(saves)} saves: {100 * share:+.1f} % of the steps they overlap")


if __name__ == "__main__":
    main()
