"""Degrees of parallelism: ranks of every group, and errors that name the valid values."""

import pytest

from ospnext_ms.config.generate import GenerateParallelSection
from ospnext_ms.config.reader import ConfigError, read_section
from ospnext_ms.config.sections import ParallelSection
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.parallel.degrees import check_generation, check_parallel, layout

SMALL = dict(freq_dim=16, text_dim=8, text_len=4, ffn_dim=8, num_full_blocks=8)
LARGE_14B = DiTConfig(dim=5120, num_heads=40, num_layers=40, **SMALL)
LARGE_1_3B = DiTConfig(dim=1536, num_heads=12, num_layers=30, **SMALL)


def section(skiparse=1, ulysses=1, **others):
    return ParallelSection(skiparse_parallel=skiparse, ulysses_parallel=ulysses, **others)


def test_groups_of_a_rank():
    """World of 16: data 2 x skiparse 4 x ulysses 2; rank 13 is data 1, s 2, u 1."""
    groups = layout(16, 4, 2, 8, 13)
    assert groups == {"world": tuple(range(16)), "video": tuple(range(8, 16)),
                      "skiparse": (9, 11, 13, 15), "ulysses": (12, 13), "shard": tuple(range(8, 16)),
                      "replica": (5, 13)}


@pytest.mark.parametrize("degrees", [(1, 1), (4, 1), (2, 2), (4, 2), (1, 8)])
def test_groups_partition_the_world(degrees):
    for kind in ("video", "skiparse", "ulysses", "shard", "replica"):
        members = [layout(16, *degrees, 4, rank)[kind] for rank in range(16)]
        assert all(rank in ranks for rank, ranks in enumerate(members))
        assert sorted(rank for ranks in set(members) for rank in ranks) == list(range(16))


@pytest.mark.framework
def test_a_single_process():
    from ospnext_ms.parallel.mesh import Mesh

    mesh = Mesh.single()
    assert (mesh.rank, mesh.size, mesh.data_rank, mesh.data_size, mesh.s, mesh.u) == (0, 1, 0, 1, 0, 0)
    assert mesh.is_leader


@pytest.mark.parametrize(("config", "degrees", "size"), [
    (LARGE_14B, section(4, 2), 64), (LARGE_14B, section(4, 2, parameter_shard=8), 8), (LARGE_1_3B, section(4, 3), 12),
    (LARGE_1_3B, section(4, 1, data_parallel=16), 64), (LARGE_1_3B, section(2, 2), 4),
])
def test_valid_degrees(config, degrees, size):
    assert check_parallel(degrees, config, size) is None


@pytest.mark.parametrize(("config", "degrees", "size", "words"), [
    (LARGE_1_3B, section(4, 2), 8, "4x2, and 8 does not divide the 12 heads; valid: 1x1, 1x2, 1x3, 1x4"),
    (LARGE_14B, section(3), 3, r"skiparse_parallel is 3; valid for sparse_ratio 2: \[1, 2, 4\]"),
    (LARGE_14B, section(4, 2), 12, "12 processes run.*needs a multiple of 8"),
    (LARGE_14B, section(4, 2, data_parallel=3), 16, "16 processes run.*needs 3 x 8 = 24"),
    (LARGE_14B, section(4, 2, parameter_shard=3), 8, r"parameter_shard is 3; valid for 8 processes: \[1, 2, 4, 8\]"),
])
def test_wrong_degrees_are_named(config, degrees, size, words):
    with pytest.raises(ValueError, match=words):
        check_parallel(degrees, config, size)


def test_degrees_below_one_are_named():
    with pytest.raises(ConfigError, match="ulysses_parallel is 0; it must be at least 1"):
        read_section(ParallelSection, {"ulysses_parallel": 0}, "parallel_config")


@pytest.mark.parametrize(("values", "size", "words"), [
    (dict(split_guidance=True, skiparse_parallel=2), 6, "pairs of groups: a multiple of 4"),
    (dict(parameter_shard=4, skiparse_parallel=2), 8, r"parameter_shard is 4.*the 2 processes.*valid: \[1, 2\]"),
])
def test_what_generation_needs(values, size, words):
    with pytest.raises(ValueError, match=words):
        check_generation(GenerateParallelSection(**values), LARGE_14B, size)
