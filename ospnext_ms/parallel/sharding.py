"""Weights of linear layers spread over a group of processes: each holds some rows, all are gathered where one is used.

The parameter keeps its name and becomes smaller, [rows of this rank, in]; so do its gradient, which comes back
reduce-scattered, and whatever an optimiser keeps beside it. Where a block is recomputed in the backward pass, its
weights are gathered again and not kept. All other parameters (biases, norms, modulation: well under 1 % of the 14B
model) stay replicated.

A weight whose rows do not divide evenly is padded with rows of zeros, which get gradients of zero.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from ospnext_ms.kernels.collectives import AllGather, ReduceScatterSum
from ospnext_ms.kernels.hif8_operators import held_codes, held_parameter, held_tensor, no_gradient
from ospnext_ms.kernels.slices import narrow


class GatheredWeight(nn.Cell):
    """Shard [n, in] -> whole weight [rows, in] in `dtype`; the gradient is summed over the group in fp32.

    Args:
        group: ProcessGroup of the shards. rows: of the whole weight. dtype: in which it is sent and used.
    """

    def __init__(self, group, rows, dtype):
        super().__init__()
        self.rows = rows
        self.padding = -rows % group.size
        self.dtype = dtype
        self.all_gather = AllGather(group)
        self.reduce_scatter = ReduceScatterSum(group)

    def construct(self, shard):
        whole = self.all_gather(shard.astype(self.dtype), "weights")
        return narrow(whole, 0, 0, self.rows)

    def bprop(self, shard, out, dout):
        dout = dout.astype(ms.float32)
        if self.padding:
            dout = ops.cat((dout, ops.zeros((self.padding, dout.shape[1]), ms.float32)), 0)
        return (self.reduce_scatter(dout, "weight_gradients").astype(shard.dtype),)


class GatheredCodes(nn.Cell):
    """Shard of 8-bit codes [n, in] -> those of the whole weight [rows, in]. Without gradient.

    hifloat8, which MindSpore's AllGather does not take, is sent as bf16, in which its numbers are exact.
    """

    def __init__(self, group, rows, dtype):
        super().__init__()
        self.rows = rows
        self.dtype = dtype
        self.sent = ms.bfloat16 if dtype == ms.hifloat8 else dtype
        self.all_gather = AllGather(group)

    def construct(self, shard):
        whole = self.all_gather(shard.astype(self.sent), "weights")
        return narrow(whole, 0, 0, self.rows).astype(self.dtype)

    def bprop(self, shard, out, dout):
        # Never used; a cast to hifloat8 has no derivative that MindSpore could infer.
        return (no_gradient(shard),)


class ShardedWeights:
    """Spreads the weights of a network's linear layers over the mesh's shard group; nothing where that is one process.

    Puts smaller parameters in the place of `net`'s, with this rank's rows of the values that are there already. To be
    called before optimiser and averages are made from them and before anything is compiled. A linear layer is a Cell
    with `weight` [out, in], `gather_weight` and the `dtype` it computes in, in which its weight is sent (see
    models.layers.Linear); codes are sent as they are. Names are those inside `net`, as in its checkpoints.

    Args:
        net: Cell, the same weights on all ranks (or none allocated yet). mesh: parallel.mesh.Mesh.
    """

    def __init__(self, net, mesh):
        self.group = mesh.shard_group
        self.shapes = {}
        self._members = set()
        if self.group.size == 1:
            return
        names = {id(parameter): name for name, parameter in net.parameters_and_names()}
        for _, cell in net.cells_and_names():
            if hasattr(cell, "gather_weight"):
                self._shard(names[id(cell.weight)], cell)

    def holds(self, parameter):
        """True for a parameter that is sharded. Its own name may have changed: wrapping a Cell puts words before it."""
        return id(parameter) in self._members

    def rows(self, name):
        """(first, last) rows of the whole weight that this rank holds; padding does not count, so they may be equal."""
        rows = self.shapes[name][0]
        share = -(-rows // self.group.size)
        return min(self.group.index * share, rows), min((self.group.index + 1) * share, rows)

    def start(self, name):
        """Index of the rank's first value in the whole, flattened tensor; 0 for a replicated one."""
        return self.rows(name)[0] * math.prod(self.shapes[name][1:]) if name in self.shapes else 0

    def shape(self, name, shape):
        """Shape of the whole tensor of which this rank's, of a parameter's name, has `shape`."""
        return self.shapes.get(name, tuple(shape))

    def cut(self, name, whole):
        """This rank's shard, padded, of a whole array [rows, ...]; a replicated one as it is."""
        if name not in self.shapes:
            return whole
        first, last = self.rows(name)
        share = -(-self.shapes[name][0] // self.group.size)
        return np.pad(whole[first:last], [(0, share - (last - first))] + [(0, 0)] * (whole.ndim - 1))

    def values(self, name, shard):
        """The rank's own values, flat and without padding, of a shard as an array; of a replicated one all values."""
        if name in self.shapes:
            first, last = self.rows(name)
            shard = shard[: last - first]
        return shard.reshape(-1)

    def total_squares(self, parameters, squares):
        """Sums of squares of this rank's part of tensors -> of the whole tensors, NumPy fp64 [n].

        `squares` is [n], one for each of the parameters to which the tensors (gradients, say) belong.
        """
        squares = np.asarray(squares, np.float64)
        if self.group.size == 1:
            return squares
        is_sharded = np.array([self.holds(parameter) for parameter in parameters])
        # Kept in fp64 through an fp32 sum, as a pair of numbers.
        high = np.where(is_sharded, squares, 0).astype(np.float32)
        low = np.where(is_sharded, squares - high, 0).astype(np.float32)
        gathered = AllGather(self.group)(Tensor(np.stack([high, low])[None]), "norms").asnumpy().astype(np.float64)
        return np.where(is_sharded, gathered.sum((0, 1)), squares)

    def _shard(self, name, cell):
        weight = cell.weight
        shape = tuple(weight.shape)
        self.shapes[name] = shape
        share = -(-shape[0] // self.group.size)
        if weight.dtype in (ms.uint8, ms.hifloat8):
            cell.weight = held_parameter((share, *shape[1:]), weight.dtype == ms.hifloat8, weight.name)
            if not weight.has_init:
                cell.weight.set_data(held_tensor(self.cut(name, held_codes(weight)), weight.dtype))
            cell.gather_weight = GatheredCodes(self.group, shape[0], weight.dtype)
        else:
            if weight.has_init:
                shard = initializer("zeros", (share, *shape[1:]), weight.dtype)
            else:
                shard = Tensor(self.cut(name, weight.asnumpy()), weight.dtype)
            # A new parameter: PyNative's gradients go by the shape that an old one was made with.
            cell.weight = Parameter(shard, name=weight.name, requires_grad=weight.requires_grad)
            cell.gather_weight = GatheredWeight(self.group, shape[0], cell.dtype)
        self._members.add(id(cell.weight))
