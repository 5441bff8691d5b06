"""Sharded arrays put together again."""

import numpy as np
from mindspore import Tensor

from ospnext_ms.kernels.collectives import AllGather


def whole(sharded, name, shard):
    """The whole array, on every rank, of this rank's shard (array or tensor) of ShardedWeights. All ranks call it."""
    if name not in sharded.shapes:
        return np.asarray(shard.asnumpy() if isinstance(shard, Tensor) else shard)
    gathered = AllGather(sharded.group)(shard if isinstance(shard, Tensor) else Tensor(shard))
    return gathered.asnumpy()[: sharded.shapes[name][0]]
