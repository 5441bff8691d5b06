"""What every process assumes for itself, compared over all of them before anything is computed."""

import hashlib
import json

import numpy as np
from mindspore import Tensor

from ospnext_ms.kernels.collectives import AllGather, AllReduceSum
from ospnext_ms.parallel.messages import GatherTexts

_DIGITS = 12
_ERROR_BYTES = 2000


def check_agreement(group, values):
    """All processes of a group call it with what has to be equal on all of them.

    Args:
        values: {name: JSON values}; tuples count as lists.

    Raises:
        ValueError: on every process, naming what differs and on which ranks.
    """
    if group.size == 1:
        return
    mine = {name: _short_hash(value) for name, value in values.items()}
    told = [json.loads(text) for text in GatherTexts(group, "hashes of settings")(json.dumps(list(mine.values())))]
    lines = []
    for i, name in enumerate(mine):
        others = [rank for rank, theirs in enumerate(told) if len(theirs) != len(mine) or theirs[i] != told[0][i]]
        if others:
            lines.append(f"{name} is not on rank {', '.join(map(str, others))} what it is on rank 0")
    if lines:
        raise ValueError("the processes of this run were not given the same: " + "; ".join(lines) + ". Start all of "
                         "them with the same files and options")


class Highest:
    """Whole number of each rank of a group -> the highest of all, on every rank. All of them call it."""

    def __init__(self, group):
        self._gather = AllGather(group)

    def __call__(self, number):
        return int(self._gather(Tensor(np.array([[number]], np.float32)), "numbers").asnumpy().max())


def decided_by_first(group, count, decide):
    """Answers of the first process of a group, bool [count], on all of its processes. All of them call it.

    Args:
        decide: called by the first alone; returns the answers.

    Raises:
        ValueError: on every process, with its words, where `decide` raises ValueError or OSError (on the first process
            that error itself).
    """
    answers, error = np.zeros(count, bool), None
    if group.index == 0:
        try:
            answers = np.asarray(decide(), bool)
        except (ValueError, OSError) as raised:
            error = raised
    if group.size > 1:
        told = GatherTexts(group, "words of an error")(str(error or "").encode()[:_ERROR_BYTES].decode(errors="ignore"))
        if error is None and told[0]:
            raise ValueError(told[0])
    if error is not None:
        raise error
    return AllReduceSum(group)(Tensor(answers.astype(np.float32)), "answers").asnumpy() > 0


def _short_hash(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]
