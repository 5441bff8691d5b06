"""What the processes' gradients are worth together.

On every rank the network returns the whole result, all ranks of a video derive the same loss from it, and a rank's
gradients are those of its own tokens. So the gradient of the mean loss over all videos is, for every parameter alike,

    sum over all ranks / number of videos in work at once (mesh.data_size).

A sharded weight's gradient has been summed over the ranks of its shard group when it comes out of the network.
"""

import math

from mindspore import ops

from ospnext_ms.kernels.collectives import AllReduceSum
from ospnext_ms.kernels.slices import split

BUCKET_BYTES = 2**26


class GradientReducer:
    """The rank's gradients -> gradients of the mean loss over all videos, in few collectives.

    Called outside compiled functions, where there is nothing to gain.

    Args:
        parameters: the trained parameters. mesh: parallel.mesh.Mesh. sharded: ShardedWeights of the network.
    """

    def __init__(self, parameters, mesh, sharded):
        parameters = list(parameters)
        whole = [i for i, parameter in enumerate(parameters) if not sharded.holds(parameter)]
        shards = [i for i, parameter in enumerate(parameters) if sharded.holds(parameter)]
        self._scale = 1.0 / mesh.data_size
        self._buckets = [(AllReduceSum(mesh.world_group), bucket) for bucket in _buckets(parameters, whole)]
        self._buckets += [(AllReduceSum(mesh.replica_group), bucket) for bucket in _buckets(parameters, shards)]

    def __call__(self, gradients):
        """Changes a list, one gradient a parameter in their order, into one of the same shapes: each is let go when its
        sum is there, for all of both would be twice the memory.

        The sums are equal on all ranks, or for sharded weights on all that hold the same shard.
        """
        for all_reduce, bucket in self._buckets:
            shapes = [gradients[i].shape for i in bucket]
            if all_reduce.size == 1:
                sums = [gradients[i] for i in bucket]
            else:
                flat = all_reduce(ops.cat([gradients[i].reshape(-1) for i in bucket], 0), "gradients")
                sums = split(flat, list(map(math.prod, shapes)), 0)
            for i, shape, total in zip(bucket, shapes, sums, strict=True):
                total = total.reshape(shape)
                gradients[i] = total if self._scale == 1 else total * self._scale


def _buckets(parameters, indices):
    """Indices in lists, each of parameters of one dtype, together at most BUCKET_BYTES (or a single larger one)."""
    buckets, open_buckets = [], {}
    for i in indices:
        parameter = parameters[i]
        num_bytes = math.prod(parameter.shape) * parameter.itemsize
        bucket, filled = open_buckets.get(parameter.dtype, ([], 0))
        if bucket and filled + num_bytes > BUCKET_BYTES:
            buckets.append(bucket)
            bucket, filled = [], 0
        open_buckets[parameter.dtype] = ([*bucket, i], filled + num_bytes)
    return buckets + [bucket for bucket, _ in open_buckets.values()]
