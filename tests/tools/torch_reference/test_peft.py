"""Adapters travel between this package and PEFT, on the PyTorch network, with the same outputs."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")
peft = pytest.importorskip("peft", reason="peft is what adapters are exchanged with")

from ospnext_ms.kernels.assign import assign_values  # noqa: E402
from ospnext_ms.models.dit import DiTConfig, OSPNextDiT  # noqa: E402
from ospnext_ms.models.lora import Adapters, LoRAConfig  # noqa: E402
from ospnext_ms.storage.peft_format import read_adapter, write_adapter  # noqa: E402
from ospnext_ms.storage.weights import save_weights  # noqa: E402
from tests.support import train_runs  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402
from tools.conversion.lora import merge_lora  # noqa: E402
from tools.torch_reference.dit import OSPNextDiT as TorchDiT  # noqa: E402
from tools.torch_reference.loading import load  # noqa: E402

CONFIG = DiTConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=4, freq_dim=16, text_dim=8, text_len=4,
                   num_full_blocks=0)
LORA = LoRAConfig(rank=3, alpha=5.0, targets=("q", "k", "v", "o"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """File with the weights of a network whose head is not zero."""
    path = tmp_path_factory.mktemp("base") / "dit.safetensors"
    ms.set_seed(2)
    save_weights(OSPNextDiT(CONFIG), path)
    return path


def inputs():
    rng = np.random.default_rng(0)
    return [a.astype(np.float32) for a in (rng.standard_normal((2, 16, 1, 8, 8)), np.array([900.0, 40.0]),
                                           rng.standard_normal((2, 4, 8)))]


def ours(base, adapter=None):
    from ospnext_ms.storage.weights import load_weights

    net = OSPNextDiT(CONFIG)
    load_weights(net, base)
    adapters = Adapters(net, LORA)
    if adapter is not None:
        adapters.load(adapter)
    return net, adapters


def run_ours(net):
    return net(*map(Tensor, inputs())).asnumpy()


def run_torch(net):
    with torch.no_grad():
        return net(*map(torch.from_numpy, inputs())).numpy()


@pytest.fixture(scope="module")
def trained(base):
    """(our network with random adapters, them)."""
    net, adapters = ours(base)
    for i, parameter in enumerate(adapters.parameters):
        assign_values(parameter, 0.1 * np.random.default_rng(i).standard_normal(parameter.shape))
    return net, adapters


def test_ours_in_peft(base, trained, tmp_path):
    net, adapters = trained
    write_adapter(tmp_path / "adapter", LORA, adapters.arrays())
    plain = load(TorchDiT(CONFIG), base)
    without = run_torch(plain)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert relative_error(run_torch(adapted), run_ours(net)) < 1e-5
    assert relative_error(without, run_ours(net)) > 1e-2
    merged = adapted.merge_and_unload()
    assert relative_error(run_torch(merged), run_ours(net)) < 1e-5


def test_what_train_writes_in_peft(base, tmp_path):
    from ospnext_ms.parallel.mesh import Mesh
    from ospnext_ms.runtime import start
    from ospnext_ms.training.loop import Trainer

    values = train_runs.adapter_settings(tmp_path / "run", None, base, steps=2)
    values["model"]["dit"] = dataclasses.asdict(CONFIG)
    values["lr_schedule"] |= {"learning_rate": 0.1, "lr_end": 0.1, "warmup_steps": 0}
    config = train_runs.read_config(tmp_path / "run.yaml", values)
    trainer = Trainer(config, start(config.context), Mesh.single())
    trainer.run()
    plain = load(TorchDiT(CONFIG), base)
    without = run_torch(plain)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter")
    assert relative_error(run_torch(adapted), run_ours(trainer.net)) < 1e-5
    assert relative_error(without, run_ours(trainer.net)) > 1e-2


def test_theirs_in_ours(base, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(LORA.targets), init_lora_weights=False)
    theirs = peft.get_peft_model(load(TorchDiT(CONFIG), base), config)
    theirs.save_pretrained(tmp_path / "adapter")
    read, arrays = read_adapter(tmp_path / "adapter")
    assert (read.rank, read.alpha, set(read.targets)) == (3, 5.0, set(LORA.targets))
    net, _ = ours(base, arrays)
    expected = run_torch(theirs)
    assert relative_error(run_ours(net), expected) < 1e-5
    merge_lora(tmp_path / "adapter", base, tmp_path / "merged.safetensors")
    net, _ = ours(tmp_path / "merged.safetensors")
    assert relative_error(run_ours(net), expected) < 1e-5
