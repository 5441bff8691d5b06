"""Matrix products by cuBLASLt, for what PyTorch's operators leave out of it: a GELU, an output in float8 and the update
of the residual stream inside the product.

The library is the one that PyTorch has loaded, called through ctypes; the algorithm is the first that it proposes.
Constants: cublasLt.h of CUDA 12 and 13.
"""

import ctypes
import functools

import torch

LIBRARIES = ("libcublasLt.so.13", "libcublasLt.so.12")
WORKSPACE_BYTES = 64 * 2**20
MAX_ALIGNMENT = 256

_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14, torch.float8_e4m3fn: 28}
_COMPUTE_FP32, _SCALE_FP32 = 68, 0
_TRANSPOSED = 1
_EPILOGUES = {(False, False): 1, (True, False): 4, (False, True): 32, (True, True): 36}
_TRANSA, _EPILOGUE, _BIAS, _BIAS_TYPE, _FAST_ACCUMULATION = 3, 7, 8, 26, 25
_SCALE_A, _SCALE_B, _SCALE_D = 17, 18, 20
_WORKSPACE, _ALIGNMENTS = 1, (5, 6, 7, 8)


class _Heuristic(ctypes.Structure):
    _fields_ = [("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int),
                ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4)]


@functools.cache
def _library():
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError(f"cuBLASLt is not there: none of {', '.join(LIBRARIES)} can be loaded")


def _call(name, *arguments):
    status = getattr(_library(), name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} returned status {status}")


@functools.cache
def _handle(device):
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", ctypes.byref(handle))
    return handle


@functools.cache
def _workspace(device):
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _alignment(tensor):
    """The largest power of two, up to MAX_ALIGNMENT, that divides the address."""
    address = tensor.data_ptr() | MAX_ALIGNMENT
    return address & -address


class _Product:
    """y [M, N] = epilogue(x [M, K] w [N, K]^T + bias) of fixed shapes and types, with its algorithm; with `adds` y
    becomes the sum of that and y.

    cuBLASLt counts columns first: it computes y^T = w x^T from the same memory.
    """

    def __init__(self, x, weight, bias, y, gelu, adds=False):
        self.adds = adds
        self.descriptor = ctypes.c_void_p()
        _call("cublasLtMatmulDescCreate", ctypes.byref(self.descriptor), _COMPUTE_FP32, _SCALE_FP32)
        self._set(_TRANSA, ctypes.c_int32(_TRANSPOSED))
        self._set(_EPILOGUE, ctypes.c_int32(_EPILOGUES[bias is not None, gelu]))
        if bias is not None:
            self._set(_BIAS_TYPE, ctypes.c_int32(_TYPES[bias.dtype]))
        if x.dtype == torch.float8_e4m3fn:
            self._set(_FAST_ACCUMULATION, ctypes.c_int8(1))
        (rows, inner), outputs = x.shape, weight.shape[0]
        self.w_layout = self._layout(weight.dtype, inner, outputs)
        self.x_layout = self._layout(x.dtype, inner, rows)
        self.y_layout = self._layout(y.dtype, outputs, rows)
        # Not read, as beta is 0, but a float8 result wants another type there.
        self.c_layout = self._layout(torch.bfloat16, outputs, rows) if y.dtype.itemsize == 1 else self.y_layout
        self.algorithm = None

    def _layout(self, dtype, rows, columns):
        layout = ctypes.c_void_p()
        _call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), _TYPES[dtype], ctypes.c_uint64(rows),
              ctypes.c_uint64(columns), ctypes.c_int64(rows))
        return layout

    def _set(self, attribute, value):
        _call("cublasLtMatmulDescSetAttribute", self.descriptor, attribute, ctypes.byref(value), ctypes.sizeof(value))

    def run(self, x, weight, bias, y, scales):
        """`scales`: fp32 scalars on the device for x and weight (both multiply) and y (multiplies), or Nones."""
        if bias is not None:
            self._set(_BIAS, ctypes.c_void_p(bias.data_ptr()))
        for attribute, scale in zip((_SCALE_B, _SCALE_A, _SCALE_D), scales, strict=True):
            if scale is not None:
                self._set(attribute, ctypes.c_void_p(scale.data_ptr()))
        if self.algorithm is None:
            self.algorithm = self._proposal(x, weight, y)
        one, beta = ctypes.c_float(1), ctypes.c_float(self.adds)
        workspace = _workspace(x.device)
        c = None if y.dtype.itemsize == 1 else ctypes.c_void_p(y.data_ptr())
        _call("cublasLtMatmul", _handle(x.device), self.descriptor, ctypes.byref(one),
              ctypes.c_void_p(weight.data_ptr()), self.w_layout, ctypes.c_void_p(x.data_ptr()), self.x_layout,
              ctypes.byref(beta), c, self.c_layout, ctypes.c_void_p(y.data_ptr()), self.y_layout,
              ctypes.byref(self.algorithm), ctypes.c_void_p(workspace.data_ptr()), ctypes.c_size_t(workspace.numel()),
              ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream))

    def _proposal(self, x, weight, y):
        preference, found, result = ctypes.c_void_p(), ctypes.c_int(), _Heuristic()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        try:
            values = {_WORKSPACE: ctypes.c_size_t(WORKSPACE_BYTES)}
            values |= {attribute: ctypes.c_uint32(_alignment(tensor))
                       for attribute, tensor in zip(_ALIGNMENTS, (weight, x, y, y), strict=True)}
            for attribute, value in values.items():
                _call("cublasLtMatmulPreferenceSetAttribute", preference, attribute, ctypes.byref(value),
                      ctypes.sizeof(value))
            _call("cublasLtMatmulAlgoGetHeuristic", _handle(x.device), self.descriptor, self.w_layout, self.x_layout,
                  self.c_layout, self.y_layout, preference, 1, ctypes.byref(result), ctypes.byref(found))
        finally:
            _call("cublasLtMatmulPreferenceDestroy", preference)
        if found.value == 0 or result.state != 0:
            raise RuntimeError(f"cuBLASLt has no algorithm for {tuple(x.shape)} x {tuple(weight.shape)}^T, "
                               f"{x.dtype} to {y.dtype}")
        return result.algorithm


_products = {}


def product(x, weight, bias=None, gelu=False, scale_x=None, scale_weight=None, scale_y=None, dtype=None, out=None,
            adds=False):
    """GELU(tanh)(x w^T + b), the GELU where asked for: x [..., K], weight [N, K], bias [N] or None -> [..., N].

    Operands are bf16, or float8 e4m3 with fp32 scales (what a code is multiplied with) on the device. `dtype` of the
    result, default that of x, may be e4m3: then it is multiplied with `scale_y` before rounding. `out` takes it; with
    `adds` it is added to `out`, fp32, and the bias is fp32 for bf16 operands, bf16 for e4m3.
    """
    assert x.is_contiguous()
    assert weight.is_contiguous()
    if out is None:
        out = torch.empty(*x.shape[:-1], weight.shape[0], dtype=dtype or x.dtype, device=x.device)
    assert out.is_contiguous()
    if not out.numel():
        return out
    x_MK, y_MN = x.view(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    scales = scale_x, scale_weight, scale_y
    key = (x.device, tuple(x_MK.shape), weight.shape[0], x.dtype, out.dtype, gelu, adds, bias is not None,
           tuple(scale is not None for scale in scales), *(_alignment(tensor) for tensor in (x, weight, out)))
    if key not in _products:
        _products[key] = _Product(x_MK, weight, bias, y_MN, gelu, adds)
    _products[key].run(x_MK, weight, bias, y_MN, scales)
    return out
