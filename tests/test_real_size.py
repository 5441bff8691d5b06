"""The 1.3B-shaped sparse DiT, random weights, on one 480x832 clip of 5 frames: MindSpore fp32 against torch_reference.

Each framework runs in a process of its own and they meet in files, so that time and peak memory are each one's own.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.models.config import DiTConfig
from tests.support.compare import relative_error
from tests.support.resident import resident

CONFIG = DiTConfig(1536, 8960, 12, 30, 256, 4096, 512, skiparse="dual_end", num_full_blocks=8)
LATENT_SHAPE = (1, 16, 2, 60, 104)


def _inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=LATENT_SHAPE).astype(np.float32)
    text = rng.normal(size=(1, 40, CONFIG.text_dim)).astype(np.float32)
    return x, np.array([731.5], np.float32), text


def _run_torch(folder):
    import torch
    from safetensors.torch import save_file

    from tools.torch_reference.dit import OSPNextDiT

    torch.manual_seed(0)
    net = OSPNextDiT(CONFIG)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.02)
        save_file(net.state_dict(), folder / "dit.safetensors")
        start = time.perf_counter()
        return net(*map(torch.from_numpy, _inputs())).numpy(), time.perf_counter() - start


def _run_mindspore(folder):
    import mindspore as ms
    from mindspore.nn.utils import no_init_parameters

    from ospnext_ms.models.dit import OSPNextDiT
    from ospnext_ms.storage.weights import load_weights

    with no_init_parameters():
        net = OSPNextDiT(CONFIG)
    load_weights(net, folder / "dit.safetensors")
    # Not compiled: the CPU backend's graphs keep every intermediate result, 2.5 GiB a block at this size.
    start = time.perf_counter()
    return net(*map(ms.Tensor, _inputs())).asnumpy(), time.perf_counter() - start


@pytest.mark.slow
def test_1_3b_forward_equals_torch_reference(tmp_path):
    report = {}
    for framework in ("torch", "mindspore"):
        subprocess.run([sys.executable, "-m", "tests.test_real_size", framework, str(tmp_path)], check=True)
        report[framework] = json.loads((tmp_path / f"{framework}.json").read_text())
    error = relative_error(np.load(tmp_path / "mindspore.npy"), np.load(tmp_path / "torch.npy"))
    print(json.dumps({**report, "relative_error": error}, indent=1))
    assert error < 1e-5


if __name__ == "__main__":
    name, directory = sys.argv[1], Path(sys.argv[2])
    out, seconds = {"torch": _run_torch, "mindspore": _run_mindspore}[name](directory)
    np.save(directory / f"{name}.npy", out)
    peak = resident() / 2**30
    (directory / f"{name}.json").write_text(json.dumps({"forward_seconds": seconds, "peak_memory_gib": peak}))
