"""The cost of saving, from figures made up for it."""

import pytest

from tools.experiments.save_overhead import overheads


def test_extra_time_is_counted_over_all_steps_that_a_save_overlaps():
    seconds = {2: 1.0, 3: 1.0, 4: 1.2, 5: 1.05, 6: 1.0, 7: 0.9}
    saves = {2: (False, 0.0), 3: (False, 0.0), 4: (True, 0.1), 5: (True, 0.0), 6: (False, 0.0), 7: (False, 0.05)}
    found, median = overheads(seconds, saves)
    assert median == 1.0
    assert [save[:3] for save in found] == [[4, 2, 0.1], [7, 1, 0.05]]
    assert [save[3] for save in found] == pytest.approx([0.25, -0.1])
