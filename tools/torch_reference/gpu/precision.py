"""What rounding costs, in relative errors of outputs: of a whole network against fp32, of one attention by its recipe.

    python -m tools.torch_reference.gpu.precision network      bf16 against fp32 of the same code, 1.3B, 5x30x52
    python -m tools.torch_reference.gpu.precision attention    q, k, v in 8 bits by every recipe, on statistics that
                                                               resemble trained ones

Weights and operands are random. `network`: the dtype of the residual stream and of what a switch of SSP sends (rounded
here as it would be there), full and sparse. `attention`: one call over as many tokens as a sub-sequence of 720P has;
"numbers" attends in fp32 to what the codes stand for, "fa3" multiplies the codes with FlashAttention-3.
"""

import argparse
import sys
from dataclasses import replace
from itertools import product

import torch

from tools.torch_reference.gpu import attention_float8, fused
from tools.torch_reference.gpu.attention_backends import attention_backend, fa3_module
from tools.torch_reference.gpu.attention_float8 import HIF8_RECIPE, AttentionRecipe
from tools.torch_reference.gpu.float8 import quantised
from tools.torch_reference.gpu.parallel import SWITCH_DTYPES
from tools.torch_reference.gpu.sequence import PackedSequence
from tools.torch_reference.gpu.settings import MODELS, random_inputs, random_model
from tools.torch_reference.gpu.timing import relative_error

GRID = (5, 30, 52)
WIDTH_14B = 5120
STATISTICS = ("random", "common k", "common k and v", "one large channel")


class RoundingSequence(PackedSequence):
    """The whole video on one device, every switch rounded as if it were sent: `payload` of SWITCH_DTYPES."""

    def __init__(self, sparse_ratio, payload):
        super().__init__(sparse_ratio)
        self.payload = payload

    def switch(self, x_BNC, owed, kernels, grid, target):
        x_BNC = x_BNC if owed is None else kernels.update(x_BNC, *owed)
        if self.payload != "stream":
            rounded = x_BNC.half() if self.payload == "fp16" else x_BNC.bfloat16()
            if self.payload == "e4m3":
                rounded = quantised(rounded, "row").dequantised().bfloat16()
            x_BNC = rounded.to(x_BNC.dtype)
        return super().switch(x_BNC, None, kernels, grid, target)


def network_errors(config, grid, device, kernels):
    """Yields (layout, residual stream, payload of a switch, error against fp32)."""
    inputs = random_inputs(config, grid, device)
    for layout in (("full", None), (config.skiparse, config.num_full_blocks)):
        base = random_model(config, device, torch.float32, kernels=fused.EagerKernels()).with_layout(*layout)
        exact = base(*inputs)
        model = random_model(config, device, torch.bfloat16, kernels=kernels).with_layout(*layout)
        model.load_state_dict(base.state_dict())
        del base
        for residual, payload in product((torch.float32, torch.bfloat16), SWITCH_DTYPES):
            if payload != "stream" and layout[0] == "full":
                continue
            model.residual_dtype = residual
            model.sequence = RoundingSequence(config.sparse_ratio, payload)
            yield layout[0], str(residual)[6:], payload, relative_error(model(*inputs), exact)
        del model


def draw_operands(statistics, tokens, num_heads, head_dim, device, sharpness, seed=0):
    """q, k, v [1, N, H, D] fp32: q and k of unit variance but for what `statistics` adds; logits' deviation is
    `sharpness` where nothing is added.
    """
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    q, k, v = (draw(1, tokens, num_heads, head_dim) for _ in range(3))
    q *= sharpness
    if statistics.startswith("common k"):
        k += 3 * draw(num_heads, head_dim)
    if statistics == "common k and v":
        v += draw(num_heads, head_dim)
    if statistics == "one large channel":
        k[..., 5] *= 10
        q[..., 5] /= 10
    return q, k, v


def attention_of(recipe, operands, kernel):
    """Attention output of 8-bit codes for the first rows of q: `kernel` "numbers" or a backend."""
    q, k, v = operands
    width = q.shape[-1]
    if recipe.centre_keys:
        k = k - k[:, :: attention_float8.KEY_STRIDE].mean(1, keepdim=True)
    mean = v.mean(1, keepdim=True) if recipe.centre_values else 0
    if recipe.hadamard:
        matrix = attention_float8.hadamard_matrix(width, q.device)
        q, k = q @ matrix, k @ matrix
    bounds = [None] * 3
    if recipe.scale == "bound":
        # Of the norm at the 14B's width, with weights as large as the operands' deviation.
        bounds = [2 * WIDTH_14B**0.5 * x.std((0, 1, 3)) for x in (q, k, v)]
    codes, scales = zip(*(attention_float8.codes_of_heads(x, recipe, bound)
                          for x, bound in zip((q, k, v - mean), bounds, strict=True)), strict=True)
    if kernel == "numbers":
        numbers = (x.float() * scale[:, None] for x, scale in zip(codes, scales, strict=True))
        return attention_backend("math")(*numbers) + mean
    return attention_backend(kernel).scaled(scales)(*codes).float() + mean


def attention_recipes():
    """{name: recipe}: ours, ours with one thing changed, and the HiF8 recipe."""
    ours = AttentionRecipe()
    hif8 = HIF8_RECIPE
    return {
        "e4m3, bound": ours,
        "e4m3, a head": replace(ours, scale="head"),
        "e4m3, a tensor": replace(ours, scale="tensor"),
        "e4m3, bound, k as it is": replace(ours, centre_keys=False),
        "e4m3, bound, v as it is": replace(ours, centre_values=False),
        "e4m3, a head, Hadamard": replace(ours, scale="head", hadamard=True),
        "HiF8, a tensor (the recipe)": hif8, "HiF8, a tensor, k and v centred": replace(
            hif8, centre_keys=True, centre_values=True),
    }


def attention_errors(device, tokens, queries=256, num_heads=4, head_dim=128):
    """Yields (statistics, sharpness, recipe, kernel, error against fp32)."""
    kernels = ("numbers", "fa3") if torch.device(device).type == "cuda" and fa3_module() else ("numbers",)
    for statistics, sharpness in product(STATISTICS, (1.0, 2.0)):
        q, k, v = draw_operands(statistics, tokens, num_heads, head_dim, device, sharpness)
        q = q[:, :queries]
        exact = attention_backend("math")(q, k, v)
        if "fa3" in kernels:
            yield statistics, sharpness, "bf16", "fa3", relative_error(
                attention_backend("fa3")(*(x.bfloat16() for x in (q, k, v))), exact)
        for (name, recipe), kernel in product(attention_recipes().items(), kernels):
            if kernel == "fa3" and recipe.number_format != "e4m3":
                continue
            yield statistics, sharpness, name, kernel, relative_error(attention_of(recipe, (q, k, v), kernel), exact)


def main(argv=None):
    """Prints a line an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("network", "attention"))
    parser.add_argument("--model", choices=MODELS, default="1.3b")
    parser.add_argument("--grid", type=int, nargs=3, default=GRID, metavar=("T", "h", "w"))
    parser.add_argument("--tokens", type=int, default=19320)
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", f"torch {torch.__version__}", flush=True)
    kernels = fused.kernels("triton" if device.type == "cuda" else "eager")
    with torch.inference_mode():
        if args.what == "network":
            config = MODELS[args.model]
            for layout, residual, payload, error in network_errors(config, tuple(args.grid), device, kernels):
                print(f"{args.model} {layout:10} {residual:9} stream, switch sends {payload:7} {error:.2e}", flush=True)
        else:
            for statistics, sharpness, name, kernel, error in attention_errors(device, args.tokens):
                print(f"{statistics:18} logits {sharpness:.0f}  {name:34} {kernel:8} {error:.2e}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
