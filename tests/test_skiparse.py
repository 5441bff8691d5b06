"""SkiparsePlan against the definition, token by token, on divisible, odd, tiny and large grids."""

import itertools

import numpy as np
import pytest

from ospnext_ms.skiparse import PATTERNS, SkiparsePlan, other_pattern

GRIDS = [(1, 1, 1), (2, 2, 2), (2, 8, 8), (2, 7, 10), (1, 6, 6), (3, 5, 9), (2, 16, 3)]


def sub_sequence_id(pattern, h, w, ratio):
    if pattern == "token":
        return (h % ratio) * ratio + w % ratio
    return (h // ratio % ratio) * ratio + w // ratio % ratio


@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_order_and_lengths_follow_the_definition(grid, ratio, pattern):
    plan = SkiparsePlan(grid, ratio)
    tokens = list(itertools.product(*map(range, grid)))
    ids = [sub_sequence_id(pattern, h, w, ratio) for _, h, w in tokens]
    expected = sorted(range(len(tokens)), key=lambda n: (ids[n], tokens[n]))
    assert plan.order(pattern).tolist() == expected
    assert plan.lengths(pattern) == tuple(ids.count(i) for i in range(ratio**2))


@pytest.mark.parametrize("grid", GRIDS)
def test_switches_and_natural_order_invert_each_other(grid):
    plan = SkiparsePlan(grid)
    x = np.random.default_rng(0).normal(size=plan.num_tokens)
    x_token, x_group = x[plan.token_order], x[plan.group_order]
    np.testing.assert_array_equal(x_token[plan.token_to_group], x_group)
    np.testing.assert_array_equal(x_group[plan.group_to_token], x_token)
    for pattern in PATTERNS:
        np.testing.assert_array_equal(x[plan.order(pattern)][plan.natural_from(pattern)], x)


def test_known_lengths():
    assert SkiparsePlan((21, 45, 80)).token_lengths == (21 * 23 * 40, 21 * 23 * 40, 21 * 22 * 40, 21 * 22 * 40)
    assert SkiparsePlan((2, 2, 2)).group_lengths == (8, 0, 0, 0)
    assert SkiparsePlan((1, 6, 6)).group_lengths == (16, 8, 8, 4)
    assert set(SkiparsePlan((21, 48, 84)).token_lengths) == {21 * 24 * 42}


@pytest.mark.parametrize(("ratio", "s_degree"), [(2, 1), (2, 2), (2, 4), (3, 3), (3, 9)])
@pytest.mark.parametrize("u_degree", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_ranks_partition_the_tokens(grid, ratio, s_degree, u_degree):
    plan = SkiparsePlan(grid, ratio, s_degree, u_degree)
    for pattern in PATTERNS:
        shards = [plan.rank_tokens(pattern, s, u) for s in range(s_degree) for u in range(u_degree)]
        assert sorted(np.concatenate(shards).tolist()) == list(range(plan.num_tokens))
        rank_of = np.argsort(plan.order(pattern))
        assert all((np.diff(rank_of[shard]) > 0).all() for shard in shards)
        for s in range(s_degree):
            owned = plan.owned_sub_sequences(pattern, s)
            assert len(owned) == ratio**2 // s_degree
            over_u = np.sum([plan.rank_lengths(pattern, s, u) for u in range(u_degree)], axis=0)
            assert over_u.tolist() == [plan.lengths(pattern)[i] for i in owned]


@pytest.mark.parametrize(("s_degree", "u_degree"), [(2, 1), (4, 1), (2, 2), (4, 2), (1, 4)])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("source", PATTERNS)
def test_switch_moves_every_token_to_its_new_owner(grid, s_degree, u_degree, source):
    plan = SkiparsePlan(grid, 2, s_degree, u_degree)
    target = other_pattern(source)
    for u in range(u_degree):
        buffers = []
        for s in range(s_degree):
            send, receive = plan.switch_splits(s, u) if source == "token" else plan.switch_splits(s, u)[::-1]
            pack, _ = plan.switch_gathers(source, s, u)
            packed = plan.rank_tokens(source, s, u)[pack]
            assert sum(send) == len(packed)
            assert sum(receive) == len(plan.rank_tokens(target, s, u))
            buffers.append(np.split(packed, np.cumsum(send)[:-1]))
        for s in range(s_degree):
            received = np.concatenate([buffers[peer][s] for peer in range(s_degree)])
            _, unpack = plan.switch_gathers(source, s, u)
            np.testing.assert_array_equal(received[unpack], plan.rank_tokens(target, s, u))


def test_pairing_balances_480p():
    plan = SkiparsePlan((21, 30, 52), 2, skiparse_parallel=2)
    assert [plan.owned_sub_sequences("group", s) for s in (0, 1)] == [[0, 3], [1, 2]]
    sizes = [len(plan.rank_tokens(pattern, s, 0)) for pattern in PATTERNS for s in (0, 1)]
    assert len(set(sizes)) == 1


def test_ulysses_shards_of_720p_are_near_equal():
    plan = SkiparsePlan((21, 45, 80), 2, 4, 2)
    for pattern in PATTERNS:
        for s in range(4):
            sizes = [len(plan.rank_tokens(pattern, s, u)) for u in (0, 1)]
            assert abs(sizes[0] - sizes[1]) <= 0.01 * sum(sizes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((0, 4, 4),), r"grid is \(0, 4, 4\)"),
        (((4, 4),), "three positive numbers"),
        (((1, 4, 4), 0), "sparse_ratio is 0"),
        (((1, 4, 4), 2, 3), r"skiparse_parallel is 3.*\[1, 2, 4\]"),
        (((1, 4, 4), 2, 1, 0), "ulysses_parallel is 0"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        SkiparsePlan(*arguments)
