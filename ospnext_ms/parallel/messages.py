"""Words between processes, whose collectives carry numbers only."""

import numpy as np
from mindspore import Tensor

from ospnext_ms.kernels.collectives import AllGather

MAX_BYTES = 4096


class GatherTexts:
    """One text of every rank -> the list of all ranks' texts, in their order, on every rank. All of them call it.

    Args:
        group: ProcessGroup. what: what the texts are, for the error.

    Raises:
        ValueError: on every rank, where a text has more than 4,096 bytes of UTF-8. Nothing is cut.
    """

    def __init__(self, group, what):
        self._gather = AllGather(group)
        self._what = what

    def __call__(self, text):
        data = text.encode()
        row = np.zeros((1, 1 + MAX_BYTES), np.float32)
        row[0, 0] = len(data)
        if len(data) <= MAX_BYTES:
            row[0, 1 : 1 + len(data)] = list(data)
        rows = self._gather(Tensor(row), "texts").asnumpy()
        sizes = rows[:, 0].astype(int)
        # Not on the one rank alone that has too much to say: the others would wait for it.
        if sizes.max() > MAX_BYTES:
            raise ValueError(f"{self._what} take {sizes.max()} bytes on process {sizes.argmax()}; at most {MAX_BYTES} "
                             "can be told to the other processes, so there have to be fewer or shorter ones")
        return [row[1 : 1 + size].astype(np.uint8).tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
