"""What one process decides for all, where it is the only one (several: tests/generation/test_stopped.py)."""

import pytest

from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.parallel.agreement import decided_by_first


def test_the_first_decides():
    assert decided_by_first(ProcessGroup(), 3, lambda: [True, False, True]).tolist() == [True, False, True]


@pytest.mark.parametrize("error", [ValueError("in use"), OSError("full"), FileNotFoundError("gone")])
def test_its_errors_are_raised(error):
    def decide():
        raise error

    with pytest.raises(type(error), match=str(error)):
        decided_by_first(ProcessGroup(), 3, decide)
