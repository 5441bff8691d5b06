"""What processes tell one another about rewards. Here they are threads, whose gathers meet at a barrier."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.parallel.messages import MAX_BYTES
from ospnext_ms.post_training.judging import Judge
from ospnext_ms.post_training.rewards.combined import Scores


class Meeting:
    """AllGather between threads."""

    def __init__(self, size):
        self.barrier, self.rows = threading.Barrier(size, timeout=30), [None] * size

    def of(self, rank):
        """The collective of one of them."""

        def gather(tensor, label):
            self.rows[rank] = tensor.asnumpy()
            self.barrier.wait()
            gathered = np.concatenate(self.rows)
            self.barrier.wait()
            return Tensor(gathered)

        return gather


def gather(scores, videos_shared_by=1):
    """What every process's Judge returns or raises; `scores` of each that leads."""
    size, count = len(scores) * videos_shared_by, len(scores[0].total)
    meeting = Meeting(size)

    def judge(rank):
        group = ProcessGroup(tuple(range(videos_shared_by)), rank % videos_shared_by)
        mesh = Mesh(rank=rank, size=size, skiparse=videos_shared_by, video_group=group)
        reward = SimpleNamespace(sections=[SimpleNamespace(name="a"), SimpleNamespace(name="b")])
        found = Judge(mesh, None, reward, count)
        found._gather = found._gather_texts._gather = meeting.of(rank)
        waiting = [lambda: scores[rank // videos_shared_by]] if mesh.is_leader else []
        try:
            return found.gather(waiting, count)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(judge, range(size)))


def scores(totals, parts, failed=(0, 0)):
    return Scores(np.array(totals), {name: np.array(values) for name, values in parts.items()},
                  dict(zip("ab", failed, strict=True)), ())


@pytest.mark.parametrize("shared_by", [1, 2])
def test_all_processes_have_the_scores_of_all_videos_in_the_order_of_ranks(shared_by):
    first = scores([1.0, np.nan], {"a": [1.0, 2.0], "b": [0.5, np.nan]}, (0, 1))
    second = scores([3.0, 4.0], {"a": [3.0, 4.0], "b": [0.25, 0.125]}, (2, 0))
    for found in gather([first, second], shared_by):
        np.testing.assert_array_equal(found.total, [1, np.nan, 3, 4])
        assert list(found.parts) == ["a", "b"]
        np.testing.assert_array_equal(found.parts["b"], [0.5, np.nan, 0.25, 0.125])
        assert found.failed == {"a": 2, "b": 1}


def test_parts_that_the_first_process_does_not_have_are_not_lost():
    """Its reward failed there, so it cannot know what parts the others got."""
    first, second = scores([np.nan], {"a": [np.nan]}, (1, 0)), scores([1.0], {"a": [1.0], "a/höhe": [7.0]})
    for found in gather([first, second]):
        assert list(found.parts) == ["a", "a/höhe"]
        np.testing.assert_array_equal(found.parts["a/höhe"], [np.nan, 7])


def test_names_that_do_not_fit_are_refused_on_every_process():
    long = scores([1.0], {"a": [1.0], "a/" + MAX_BYTES * "x": [2.0]})
    for found in gather([scores([1.0], {"a": [1.0]}), long]):
        assert isinstance(found, ValueError)
        assert "names of rewards and their parts take 4107 bytes on process 1; at most 4096" in str(found)
