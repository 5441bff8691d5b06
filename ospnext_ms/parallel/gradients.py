"""What the processes' gradients are worth together.

On every rank the network returns the whole result, all ranks of a video derive the same loss from it, and a rank's
gradients are those of its own tokens. So the gradient of the mean loss over all videos is, for every parameter alike,

    sum over all ranks / number of videos in work at once (mesh.data_size).

A sharded weight's gradient has been summed over the ranks of its shard group when it comes out of the network.
"""

import math

from mindspore import nn, ops

from ospnext_ms.kernels.collectives import AllReduceSum

BUCKET_BYTES = 2**26


class GradientReducer(nn.Cell):
    """The rank's gradients -> gradients of the mean loss over all videos, in few collectives.

    Args:
        parameters: the trained parameters. mesh: parallel.mesh.Mesh. sharded: ShardedWeights of the network.

    Inputs: one gradient a parameter, in their order, shapes of the parameters. Output: a tuple of the same; equal on
    all ranks, or for sharded weights on all that hold the same shard.
    """

    def __init__(self, parameters, mesh, sharded):
        super().__init__()
        parameters = list(parameters)
        whole = [i for i, parameter in enumerate(parameters) if not sharded.holds(parameter)]
        shards = [i for i, parameter in enumerate(parameters) if sharded.holds(parameter)]
        self.scale = 1.0 / mesh.data_size
        self.count = len(parameters)
        self.sum_whole = AllReduceSum(mesh.world_group)
        self.sum_shards = AllReduceSum(mesh.replica_group)
        self.whole_buckets = _buckets(parameters, whole)
        self.shard_buckets = _buckets(parameters, shards)

    def construct(self, gradients):
        reduced = [None] * self.count
        for indices, sizes in self.whole_buckets:
            for i, gradient in zip(indices, self._fused(self.sum_whole, gradients, indices, sizes)):  # noqa: B905
                reduced[i] = gradient
        for indices, sizes in self.shard_buckets:
            for i, gradient in zip(indices, self._fused(self.sum_shards, gradients, indices, sizes)):  # noqa: B905
                reduced[i] = gradient
        return tuple(reduced)

    def _fused(self, all_reduce, gradients, indices, sizes):
        """Sums the gradients of a bucket over the group in one collective and scales them."""
        if all_reduce.size == 1:
            return [gradients[i] * self.scale for i in indices]
        flat = ops.cat([gradients[i].reshape(-1) for i in indices], 0)
        parts = ops.split(all_reduce(flat, "gradients") * self.scale, sizes)
        return [part.reshape(gradients[i].shape) for i, part in zip(indices, parts)]  # noqa: B905  (no graph syntax)


def _buckets(parameters, indices):
    """((indices, sizes), ...): parameters of one dtype, together at most BUCKET_BYTES (or a single larger one)."""
    buckets, open_buckets = [], {}
    for i in indices:
        parameter = parameters[i]
        num_bytes = math.prod(parameter.shape) * parameter.itemsize
        bucket, filled = open_buckets.get(parameter.dtype, ([], 0))
        if bucket and filled + num_bytes > BUCKET_BYTES:
            buckets.append(bucket)
            bucket, filled = [], 0
        open_buckets[parameter.dtype] = ([*bucket, i], filled + num_bytes)
    buckets += [bucket for bucket, _ in open_buckets.values()]
    return tuple((tuple(bucket), tuple(math.prod(parameters[i].shape) for i in bucket)) for bucket in buckets)
