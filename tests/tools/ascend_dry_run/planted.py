"""Faults that the dry run is there to notice, each once in the code: a case of it compiled with one of them.

python -m tests.tools.ascend_dry_run.planted FAULT NAME [JSON OPTIONS], else as tools.ascend_dry_run.cases.
"""

import sys

import mindspore as ms
from mindspore import Tensor, nn, ops

from ospnext_ms import build
from ospnext_ms.kernels import collectives, hif8_operators, hif8_product
from ospnext_ms.models import dit
from ospnext_ms.parallel import sharding
from tools.ascend_dry_run.cases import main


class DerivedUpdate(nn.Cell):
    """GatedUpdate without a gradient of its own."""

    def construct(self, x_BNC, y_BNC, gate_B1C):
        return (x_BNC.astype(ms.float32) + y_BNC.astype(ms.float32) * gate_B1C).astype(x_BNC.dtype)


class ProductOfQuantMatmul(hif8_product.NativeMatMul):
    """The product by the operator that is for uncompiled code only, with arguments by keyword."""

    def construct(self, a_MK, b_KN):
        one = Tensor([1.0], ms.float32)
        y = ops.auto_generate.quant_matmul(a_MK, b_KN, one, pertoken_scale=one, output_dtype=ms.float16)
        return y, 1.0


class AmaxAmongInfinities(hif8_operators.Amax):
    """The largest number, looked for with as many infinities: a graph keeps them as a constant."""

    def construct(self, x):
        magnitude = ops.abs(ops.stop_gradient(x).astype(ms.float32))
        finite = ops.where(magnitude < self.infinity, magnitude, ops.full_like(magnitude, float("inf")))
        return ops.ReduceMax()(finite).reshape(1)


class HeadInFp64(dit.Head):
    """The head, whose input is rounded from fp64."""

    def construct(self, x_BNC, e_BC):
        return super().construct((x_BNC.astype(ms.float64) * 2.0).astype(ms.float32), e_BC)


class GatheredAfterSum(collectives.AllGather):
    """AllGather with a sum before it that no other rank asks for."""

    def construct(self, x, label="all_gather"):
        return super().construct(self.all_reduce(x), label)


FAULTS = {
    "update-derived": (dit, "GatedUpdate", DerivedUpdate),
    "quant-matmul": (hif8_product, "NativeMatMul", ProductOfQuantMatmul),
    "infinities": (hif8_operators, "Amax", AmaxAmongInfinities),
    "blocks-apart": (build, "compile_once", lambda cells, kinds: None),
    "fp64": (dit, "Head", HeadInFp64),
    "exchange-alone": (sharding, "AllGather", GatheredAfterSum),
}

if __name__ == "__main__":
    fault, *case = sys.argv[1:]
    module, name, planted = FAULTS[fault]
    setattr(module, name, planted)
    main(*case)
