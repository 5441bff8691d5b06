"""Where the stochastic window of an iteration begins."""

import pytest

from ospnext_ms.diffusion.windows import window_start


def test_first_window_stays():
    assert {window_start("first", 10, 25, 25, i, 0) for i in range(100)} == {0}


def test_progressive_window_moves_and_begins_anew():
    starts = [window_start("progressive", 4, 3, 8, i, 0) for i in range(15)]
    assert starts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0]


def test_random_window_reaches_every_place_and_repeats():
    starts = [window_start("random", 4, 2, 8, i, 5) for i in range(200)]
    assert set(starts) == {0, 1, 2, 3}
    assert all(starts[i] == starts[i + 1] for i in range(0, 200, 2))
    assert starts == [window_start("random", 4, 2, 8, i, 5) for i in range(200)]
    assert starts != [window_start("random", 4, 2, 8, i, 6) for i in range(200)]


@pytest.mark.parametrize(("strategy", "size", "message"), [
    ("middle", 2, "'first', 'progressive', 'random'"),
    ("first", 8, "from 1 to 7"),
    ("first", 0, "from 1 to 7"),
])
def test_invalid_windows(strategy, size, message):
    with pytest.raises(ValueError, match=message):
        window_start(strategy, size, 1, 8, 0, 0)
