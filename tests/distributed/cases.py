"""What the workers compare with one process; a table, so that pytest knows the cases without starting anything."""

from dataclasses import dataclass

# Per world size: S x U.
DEGREES = {2: ("2x1", "1x2"), 4: ("4x1", "2x2")}
# How a video is generated: degrees, and whether the branches of guidance are split.
GENERATION = {2: (("2x1", False), ("1x2", False), ("1x1", True)), 4: (("4x1", False), ("2x2", False), ("2x1", True))}
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


def cases(world):
    """The cases of a world size."""
    found = [Case(degrees, grid, batch=2 if grid == (3, 7, 10) else 1) for degrees in DEGREES[world] for grid in GRIDS]
    found += [Case(degrees, (3, 7, 10), shard=world) for degrees in DEGREES[world]]
    return found + [Case(DEGREES[world][0], (3, 7, 10), shard=2, recompute=True)]


def slow_cases(world):
    """Cases that take minutes to compile."""
    return [Case(DEGREES[world][1], (3, 7, 10), shard=2, recompute=True, compiled=True)]
