"""The MindSpore transformer in fp32 against the PyTorch reference on another machine, through files.

    python -m tools.torch_reference.gpu.parity write --folder DIR      where MindSpore is: outputs and gradients to DIR
    python -m tools.torch_reference.gpu.parity compare --folder DIR    where the GPU is: no MindSpore needed

Weights and inputs are drawn by NumPy from a seed on both sides, so only what MindSpore computed travels: the output and
of every gradient all entries, or ENTRIES of them drawn by seed. The bar: bf16 is at most twice as far from MindSpore's
fp32 as from PyTorch's own fp32, in the output and in the gradient of every parameter.
"""

import argparse
import json
import sys
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.storage.files import atomic_path

ENTRIES = 16384
FP32_BOUND, RATIO_BOUND = 1e-4, 2.0


@dataclass(frozen=True)
class Case:
    """A network, a token grid (T, h, w) and a batch; gradients are compared too, or the output alone."""

    config: DiTConfig
    grid: tuple
    batch: int
    gradients: bool = True


CASES = {
    "tiny": Case(DiTConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=8, num_full_blocks=4, freq_dim=32, text_dim=32,
                           text_len=16), (3, 5, 7), 2),
    "100m": Case(DiTConfig(dim=768, ffn_dim=3072, num_heads=12, num_layers=10, num_full_blocks=4, freq_dim=256,
                           text_dim=512, text_len=64), (3, 10, 14), 1),
    "1.3b": Case(DiTConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, num_full_blocks=8, freq_dim=256,
                           text_dim=4096, text_len=512), (2, 6, 8), 1, gradients=False),
}


def draw_weights(shapes, seed=0):
    """{name: fp32 array} of the given {name: shape}; nothing is zero, activations stay near one."""
    weights = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = generator.standard_normal(shape, np.float32)
        if "norm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.1 * values
        elif name.endswith("bias"):
            weights[name] = 0.02 * values
        else:
            fan_in = shape[-1] if name.endswith("modulation") else int(np.prod(shape[1:]))
            weights[name] = values * np.float32(fan_in**-0.5)
    return weights


def draw_inputs(case, seed=1):
    """fp32 arrays {"x", "t", "text", "probe"}; the loss is the mean of the output times `probe`."""
    generator = np.random.default_rng(seed)
    config, (frames, height, width) = case.config, case.grid
    _, p, q = config.patch_size
    video = (case.batch, config.in_channels, frames, height * p, width * q)
    return {"x": generator.standard_normal(video, np.float32),
            "t": generator.uniform(0, 1000, case.batch).astype(np.float32),
            "text": generator.standard_normal((case.batch, config.text_len - 1, config.text_dim), np.float32),
            "probe": generator.standard_normal(video, np.float32)}


def entries_of(name, size):
    """Indices of the entries of a flattened gradient that travel."""
    if size <= ENTRIES:
        return np.arange(size)
    return np.random.default_rng(zlib.crc32(name.encode())).choice(size, ENTRIES, replace=False)


def fingerprint(arrays):
    """CRC of all arrays, in order of their names: NumPy must draw the same on both sides."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).data, crc)
    return f"{crc:08x}"


def write(name, folder):
    """Runs the MindSpore network `name` and writes NAME.safetensors."""
    import mindspore as ms

    from ospnext_ms.models.dit import OSPNextDiT

    case, begin = CASES[name], time.perf_counter()
    model = OSPNextDiT(case.config)
    parameters = dict(model.parameters_and_names())
    weights = draw_weights({key: parameter.shape for key, parameter in parameters.items()})
    expected = fingerprint(weights)
    for key, parameter in parameters.items():
        parameter.set_data(ms.Tensor(weights.pop(key)))
    inputs = draw_inputs(case)
    x, t, text, probe = (ms.Tensor(inputs[key]) for key in ("x", "t", "text", "probe"))

    def forward():
        out = model(x, t, text)
        return (out * probe).mean(), out

    if case.gradients:
        (_, out), gradients = ms.value_and_grad(forward, None, list(parameters.values()), has_aux=True)()
    else:
        out, gradients = model(x, t, text), ()
    arrays = {"out": out.asnumpy()}
    for key, gradient in zip(parameters, gradients, strict=case.gradients):
        flat = gradient.asnumpy().ravel()
        arrays[f"gradient.{key}"] = flat[entries_of(key, flat.size)]
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(asdict(case.config)), "mindspore": ms.__version__,
                "weights": expected, "inputs": fingerprint(inputs)}
    with atomic_path(folder / f"{name}.safetensors") as path:
        save_file(arrays, path, metadata)
    count = sum(parameter.size for parameter in parameters.values())
    print(f"{name}: {count / 1e6:.1f} M parameters, {sum(a.nbytes for a in arrays.values()) / 2**20:.1f} MiB, "
          f"{time.perf_counter() - begin:.0f} s", flush=True)


def read(name, folder):
    """Arrays and metadata that `write` left. Raises FileNotFoundError, ValueError for another network."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with: parity write --case {name} --folder {folder}")
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if metadata["config"] != json.dumps(asdict(CASES[name].config)):
        raise ValueError(f"{path} was written for another network: {metadata['config']}")
    return arrays, metadata


def compare(name, folder, device):
    """PyTorch in fp32 and bf16 against MindSpore's file; returns {"errors": {quantity: {pair: error}}, "failed"}."""
    import torch

    from tools.torch_reference.gpu import fused
    from tools.torch_reference.gpu.packed import PackedDiT

    case, (expected, metadata) = CASES[name], read(name, folder)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in PackedDiT(case.config).state_dict().items()}
    weights, inputs = draw_weights(shapes), draw_inputs(case)
    for kind, arrays in (("weights", weights), ("inputs", inputs)):
        if fingerprint(arrays) != metadata[kind]:
            raise ValueError(f"{kind} drawn here ({fingerprint(arrays)}) are not those of the file ({metadata[kind]}): "
                             f"another NumPy than there? This is {np.__version__}")
    x, t, text, probe = (torch.from_numpy(inputs[key]).to(device) for key in ("x", "t", "text", "probe"))
    runs = {"fp32": (torch.float32, "eager"), "bf16": (torch.bfloat16, "eager")}
    if torch.device(device).type == "cuda":
        runs["bf16, triton"] = (torch.bfloat16, "triton")
    results = {}
    for run, (dtype, kernels) in runs.items():
        model = PackedDiT(case.config, dtype=dtype, kernels=fused.kernels(kernels)).to(device)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        if kernels == "triton" or not case.gradients:
            with torch.inference_mode():
                results[run] = {"out": model(x, t, text).cpu().numpy()}
            continue
        out = model(x, t, text)
        (out * probe).mean().backward()
        results[run] = {"out": out.detach().cpu().numpy()}
        for key, parameter in model.named_parameters():
            flat = parameter.grad.float().flatten().cpu().numpy()
            results[run][f"gradient.{key}"] = flat[entries_of(key, flat.size)]
    exact = results.pop("fp32")
    return judge(name, expected, exact, results)


def judge(name, expected, exact, rounded):
    """Errors of every quantity and which of them miss their bound: see FP32_BOUND and RATIO_BOUND."""
    if set(expected) != set(exact):
        raise ValueError(f"{name}: quantities differ: {sorted(set(expected) ^ set(exact))[:5]}")
    errors, failed = {}, []
    for key, value in expected.items():
        errors[key] = {"fp32": _error(exact[key], value)}
        if not errors[key]["fp32"] < FP32_BOUND:
            failed.append(f"{key}: fp32 against MindSpore {errors[key]['fp32']:.2e}")
        for run, result in rounded.items():
            if key in result:
                against, yardstick = _error(result[key], value), _error(result[key], exact[key])
                errors[key] |= {run: against, f"{run}, yardstick": yardstick}
                # The gradient of the last bias never meets bf16.
                if not against <= max(RATIO_BOUND * yardstick, FP32_BOUND):
                    failed.append(f"{key}: {run} against MindSpore {against:.2e}, against PyTorch's fp32 "
                                  f"{yardstick:.2e}")
    return {"case": name, "errors": errors, "failed": failed}


def _error(actual, expected):
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def print_result(result):
    """Output, then over the gradients the median and the worst, each with its yardstick."""
    gradients = [errors for key, errors in result["errors"].items() if key.startswith("gradient.")]
    print(f"{result['case']}: {'quantity':<28}{'MindSpore fp32':>16}{'PyTorch fp32':>14}{'ratio':>8}")
    for run in ("fp32", "bf16", "bf16, triton"):
        for quantity, rows in ((f"{run}: output", [result["errors"]["out"]]), (f"{run}: gradients", gradients)):
            rows = sorted((row for row in rows if run in row), key=lambda row: row[run])
            for label, row in dict(zip((", median", ", worst") if len(rows) > 1 else ("",),
                                       (rows[len(rows) // 2], rows[-1]) if rows else (), strict=False)).items():
                yardstick = row.get(f"{run}, yardstick")
                ratio = f"{yardstick:>14.2e}{row[run] / yardstick:>8.3f}" if yardstick else ""
                print(f"  {quantity + label:<34}{row[run]:>16.2e}{ratio}")
    print(f"  {len(gradients)} gradients; " + ("all within the bounds" if not result["failed"] else "FAILED:"))
    for line in result["failed"]:
        print(f"    {line}", flush=True)


def main(argv=None):
    """Returns the exit code: 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--output", type=Path, help="JSON file for all errors of `compare`")
    args = parser.parse_args(argv)
    if args.action == "write":
        for name in args.case:
            write(name, args.folder)
        return 0
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else "CPU", f"torch {torch.__version__}", flush=True)
    results = []
    for name in args.case:
        results.append(compare(name, args.folder, device))
        print_result(results[-1])
    if args.output:
        args.output.write_text(json.dumps(results, indent=1))
    return int(any(result["failed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
