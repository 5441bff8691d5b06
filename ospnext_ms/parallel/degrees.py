"""Degrees of parallelism: which are valid, and which ranks they bring together. Framework-free."""

import os
from typing import Protocol

from ospnext_ms.models.config import DiTConfig


class ParallelDegrees(Protocol):
    """What is asked of a ParallelSection."""

    @property
    def data_parallel(self) -> int | None: ...
    @property
    def skiparse_parallel(self) -> int: ...
    @property
    def ulysses_parallel(self) -> int: ...
    @property
    def parameter_shard(self) -> int: ...


class GenerationDegrees(ParallelDegrees, Protocol):
    """What is asked of a GenerateParallelSection."""

    @property
    def split_guidance(self) -> bool: ...


def layout(size: int, skiparse: int, ulysses: int, shard: int, rank: int) -> dict[str, tuple[int, ...]]:
    """World ranks of the groups of `rank`: {"world", "video", "skiparse", "ulysses", "shard", "replica"}."""
    degree = skiparse * ulysses
    first = rank // degree * degree
    s, u = rank % degree // ulysses, rank % ulysses
    first_shard = rank // shard * shard
    return {
        "world": tuple(range(size)),
        "video": tuple(range(first, first + degree)),
        "skiparse": tuple(range(first + u, first + degree, ulysses)),
        "ulysses": tuple(range(first + s * ulysses, first + (s + 1) * ulysses)),
        "shard": tuple(range(first_shard, first_shard + shard)),
        "replica": tuple(range(rank % shard, size, shard)),
    }


def world_size() -> int:
    """Number of processes that msrun started, 1 without msrun."""
    return int(os.environ.get("MS_WORKER_NUM", "1"))


def check_parallel(section: ParallelDegrees, config: DiTConfig, size: int) -> None:
    """Checks a ParallelSection against the transformer (DiTConfig) and the number of processes; needs no MindSpore.

    Raises:
        ValueError: a degree that is not valid, with those that are; a world size that is not their product.
    """
    skiparse, ulysses = section.skiparse_parallel, section.ulysses_parallel
    valid = _divisors(config.sparse_ratio**2)
    if skiparse not in valid:
        raise ValueError(f"parallel_config.skiparse_parallel is {skiparse}; "
                         f"valid for sparse_ratio {config.sparse_ratio}: {valid}")
    heads = config.num_heads
    if heads % (skiparse * ulysses):
        pairs = [f"{s}x{u}" for s in valid for u in _divisors(heads) if heads % (s * u) == 0]
        raise ValueError(f"parallel_config: skiparse_parallel x ulysses_parallel is {skiparse}x{ulysses}, and "
                         f"{skiparse * ulysses} does not divide the {heads} heads; valid: {', '.join(pairs)}")
    degree = skiparse * ulysses
    data = section.data_parallel
    if size % degree or (data is not None and data * degree != size):
        wanted = f"a multiple of {degree}" if data is None else f"{data} x {degree} = {data * degree}"
        raise ValueError(f"{size} processes run, but parallel_config (data_parallel {data}, skiparse_parallel "
                         f"{skiparse}, ulysses_parallel {ulysses}) needs {wanted}; start them with "
                         "msrun --worker_num, or change the degrees")
    if size % section.parameter_shard:
        raise ValueError(f"parallel_config.parameter_shard is {section.parameter_shard}; valid for {size} processes: "
                         f"{_divisors(size)}")


def check_generation(section: GenerationDegrees, config: DiTConfig, size: int) -> None:
    """Checks a GenerateParallelSection as check_parallel does, and what is particular to generation.

    Raises:
        ValueError: see check_parallel; guidance branches without partner; weights shared with processes that work on
            other videos.
    """
    check_parallel(section, config, size)
    lane = section.skiparse_parallel * section.ulysses_parallel * (2 if section.split_guidance else 1)
    if size % lane:
        raise ValueError(f"{size} processes run, but parallel_config.split_guidance needs pairs of groups: "
                         f"a multiple of {lane}")
    if lane % section.parameter_shard:
        raise ValueError(f"parallel_config.parameter_shard is {section.parameter_shard}; generation shards weights "
                         f"among the {lane} processes that make a video; valid: {_divisors(lane)}")


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]
