"""8 bits for a whole PackedDiT: which of its linears, which of its blocks, and HiF8 checkpoints."""

import numpy as np
import torch
from safetensors.torch import load_file

from ospnext_ms.hif8_format import decode
from ospnext_ms.storage.hif8_weights import SCALE_SUFFIX
from tools.torch_reference.gpu import attention_float8, float8_kernels, fused
from tools.torch_reference.gpu.float8 import E4M3, E4M3_MAX, Float8Linear, Quantised


def block_linears(model, blocks=None):
    """(parent, name in it, name in the model) of every linear that the recipe quantises, of the given blocks."""
    for i in range(len(model.blocks)) if blocks is None else blocks:
        block = model.blocks[i]
        for part, names in (("self_attn", "qkvo"), ("cross_attn", "qkvo"), ("ffn", "02")):
            yield from ((getattr(block, part), name, f"blocks.{i}.{part}.{name}") for name in names)


def quantise(model, kernels_name, scaling=None, attention=None, keep_bf16=0, stored=None):
    """Replaces the block linears of a PackedDiT and its kernels, in place; the layers it had stay untouched, and are
    freed one by one where nobody else holds them.

    Args:
        kernels_name: of fused.IMPLEMENTATIONS.
        scaling: float8.SCALINGS of the linears; None leaves them as they are.
        attention: attention_float8.AttentionRecipe; None leaves the operands of attention as they are.
        keep_bf16: so many blocks at either end stay as they are.
        stored: {name: Quantised}, weights that are in 8 bits already.

    Raises ValueError for a model in fp32: by that dtype the norm of the head is told from those of the blocks; or where
    `keep_bf16` leaves no block.
    """
    if model.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"linears of the model are {model.dtype}; valid: torch.bfloat16, torch.float16")
    count = len(model.blocks)
    if not 0 <= 2 * keep_bf16 < count:
        raise ValueError(f"keep_bf16 is {keep_bf16}; valid for {count} blocks: 0 to {(count - 1) // 2}")
    inner = range(keep_bf16, count - keep_bf16)
    if scaling is not None:
        for parent, name, path in list(block_linears(model, inner)):
            weight = (stored or {}).get(f"{path}.weight")
            setattr(parent, name, Float8Linear(getattr(parent, name), scaling, weight))
    plain = fused.kernels(kernels_name)
    quantising = plain if scaling is None else float8_kernels.kernels(kernels_name, scaling)
    if attention is not None:
        quantising = attention_float8.kernels(kernels_name, attention, quantising)
    model.kernels = plain
    model.block_kernels = [quantising if i in inner else plain for i in range(count)]
    return model


def load_hif8(model, path, scaling, kernels_name, attention=None):
    """Loads a .safetensors file with HiF8 weights (ospnext_ms.storage.hif8_weights) into a PackedDiT and quantises it.

    The numbers stay those of the file: e4m3 takes them times a power of two, which loses only HiF8's few numbers below
    2^-12 of the largest. Raises ValueError where tensors are missing or left over.
    """
    tensors, stored = load_file(path), {}
    numbers = torch.from_numpy(decode(np.arange(256, dtype=np.uint8)))
    for key in [key for key, tensor in tensors.items() if tensor.dtype == torch.uint8]:
        values, scale = numbers[tensors.pop(key).int()], tensors.pop(key + SCALE_SUFFIX).reshape(())
        place = dict(model.named_parameters())[key].device
        stored[key] = _of_hif8(values.to(place), scale.to(place), scaling, model.dtype)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    wanted = {f"{path}.weight" for _, _, path in block_linears(model)}
    wrong = sorted((set(missing) ^ wanted) | (set(stored) ^ wanted) | set(unexpected))
    if wrong:
        raise ValueError(f"{path} is not this model with its block linears in HiF8; missing or left over: {wrong[:10]}")
    return quantise(model, kernels_name, scaling, attention, stored=stored)


def _of_hif8(values, scale, scaling, dtype):
    """Quantised weight of HiF8 numbers [out, in] fp32 and their scale."""
    if scaling == "hif8":
        return Quantised(values.bfloat16(), scale, dtype)
    amax = values.abs().amax(-1, keepdim=True) if scaling == "row" else values.abs().amax()
    factor = torch.where(amax > 0, torch.exp2(torch.floor(torch.log2(E4M3_MAX / amax.clamp_min(1e-30)))), 1.0)
    return Quantised((values * factor).to(E4M3), scale / factor, dtype)
