"""What the workers compare with one process: tables, so that pytest knows the cases without starting anything."""

from dataclasses import dataclass

from tests.support import train_runs

# Files of tests that read one job's results.
PARTS = ("sequence_parallel", "hif8", "train")
# Per world size: S x U.
DEGREES = {2: ("2x1", "1x2"), 4: ("4x1", "2x2")}
# (2, 8, 8) divides; (3, 7, 10) does not, so shards are uneven; (2, 2, 2) has empty shards.
GRIDS = ((2, 8, 8), (3, 7, 10), (2, 2, 2))
MODEL = dict(dim=32, ffn_dim=60, num_heads=4, num_layers=8, freq_dim=16, text_dim=8, text_len=6, num_full_blocks=4)


@dataclass(frozen=True)
class Case:
    """One comparison: degrees "SxU", token grid, ranks a weight is spread over, and how it runs."""

    degrees: str
    grid: tuple
    shard: int = 1
    compiled: bool = False
    recompute: bool = False
    batch: int = 1

    @property
    def name(self):
        """Identifies the case in test names and results."""
        words = [self.degrees, "grid" + "x".join(map(str, self.grid))]
        words += [f"batch{self.batch}"] if self.batch > 1 else []
        words += [f"shard{self.shard}"] if self.shard > 1 else []
        return "-".join(words + ["jit"] * self.compiled + ["recompute"] * self.recompute)


UNEVEN, EMPTY = GRIDS[1:]
# What is generated, and with what: degrees, and whether the branches of guidance are split.
GENERATION = {(2, "quick"): (("2x1", False), ("1x1", True)), (4, "quick"): (),
              (2, "slow"): (("1x2", False),), (4, "slow"): (("2x2", False), ("4x1", False), ("2x1", True))}
# Compiled exchanges of a full block, a switch and a sparse block: degrees and grid.
EXCHANGES = {(2, "quick"): (("2x1", EMPTY), ("1x2", UNEVEN)), (4, "quick"): (("4x1", EMPTY),),
             (2, "slow"): (("2x1", UNEVEN), ("1x2", EMPTY)),
             (4, "slow"): (("2x2", UNEVEN), ("4x1", UNEVEN), ("2x2", EMPTY))}

# Degrees that share a video in HiF8.
HIF8 = {(2, "quick"): ("2x1",), (4, "quick"): (), (2, "slow"): (), (4, "slow"): ("2x2", "4x1")}
# Runs of training; see conftest.py for their settings.
TRAINING = {(2, "quick"): ("resume", "nan", "disagree"), (4, "quick"): ("save",),
            (2, "slow"): ("resume compiled", "adapters ssp", "adapters data"), (4, "slow"): ()}
# A checkpoint is left at STEPS, from which others train on to MORE.
STEPS, MORE = 2, 4


def cases(world, speed):
    """The cases of a world size: "quick" ones, and "slow" ones for which there is no time in the default tests."""
    first, second = DEGREES[world]
    if speed == "quick":
        found = [Case(degrees, grid, batch=2 if grid == UNEVEN else 1) for degrees in DEGREES[world] for grid in GRIDS]
        return found + ([Case(first, UNEVEN, shard=2, recompute=True)] if world == 2 else [])
    found = [Case(degrees, UNEVEN, shard=shard) for degrees in DEGREES[world] for shard in sorted({2, world})]
    found += [Case(second, UNEVEN, shard=2, recompute=True)]
    return found + [Case(second, UNEVEN, shard=2, recompute=True, compiled=True)]


def train_settings(folder, data, steps, mode="pynative", **parallel):
    """A TrainConfig as nested dicts, of two videos a step, that leaves a checkpoint at STEPS."""
    return _in_parallel(train_runs.settings(folder, data, steps, STEPS), mode, parallel)


def adapter_settings(folder, data, base, **parallel):
    """As train_settings, of adapters beside the network at `base`."""
    values = train_runs.adapter_settings(folder, data, base, steps=MORE, every=STEPS)
    values["model"]["dit"]["num_layers"] = train_runs.DIT["num_layers"]
    return _in_parallel(values, "pynative", parallel)


def _in_parallel(values, mode, parallel):
    values["context"]["mode"] = mode
    values["runner_config"]["batch_size"] = 2 // parallel.get("data_parallel", 1)
    values["parallel_config"] = parallel
    return values
