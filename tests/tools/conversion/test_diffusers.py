"""diffusers and transformers load what goes to them, and it does there what it does here; so does what comes back."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers is what weights and adapters are exchanged with")
peft = pytest.importorskip("peft", reason="diffusers loads adapters with it")

from ospnext_ms.build import build_dit  # noqa: E402
from ospnext_ms.config.sections import DiTSection  # noqa: E402
from ospnext_ms.runtime import Runtime  # noqa: E402
from tests.support import train_runs  # noqa: E402
from tests.support.checkpoints import random_state, write_source  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402
from tools.conversion.convert import convert  # noqa: E402
from tools.conversion.lora import convert_lora  # noqa: E402

SIZES = {"ffn_dim": 48, "num_layers": 2, "freq_dim": 16, "text_dim": 8, "in_channels": 16, "out_channels": 16}
TEXT_LEN = 4


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(their transformer, folder with it, folder with it converted)."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    model = diffusers.WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, cross_attn_norm=True,
                                            qk_norm="rms_norm_across_heads", **SIZES)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    model.save_pretrained(folder / "theirs")
    convert("dit", folder / "theirs", folder / "ours")
    return model, folder / "theirs", folder / "ours"


def inputs():
    rng = np.random.default_rng(0)
    return [a.astype(np.float32) for a in (rng.standard_normal((2, 16, 2, 8, 8)), np.array([900.0, 40.0]),
                                           rng.standard_normal((2, TEXT_LEN, 8)))]


def run_theirs(model):
    x, t, text = map(torch.from_numpy, inputs())
    with torch.no_grad():
        return model(x, t, text, return_dict=False)[0].numpy()


def run_ours(checkpoint, adapters=()):
    section = DiTSection(dim=32, num_heads=2, text_len=TEXT_LEN, skiparse="full", checkpoint=str(checkpoint), **SIZES)
    net = build_dit(section, Runtime("CPU", ms.float32, False), adapters=adapters)
    return net(*map(Tensor, inputs())).asnumpy()


def fresh(folder):
    return diffusers.WanTransformer3DModel.from_pretrained(folder)


def load_adapter(model, path):
    """As a pipeline's load_lora_weights does it with the transformer."""
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    state, metadata = WanLoraLoaderMixin.lora_state_dict(str(path.parent), weight_name=path.name,
                                                         return_lora_metadata=True)
    assert all("lora" in name for name in state)
    WanLoraLoaderMixin.load_lora_into_transformer(state, model, metadata=metadata)
    return model


def test_both_ways_with_their_configuration(theirs, tmp_path):
    model, _, ours = theirs
    expected = run_theirs(model)
    assert relative_error(run_ours(ours), expected) < 1e-5
    assert json.loads((ours / "config.json").read_text())["num_heads"] == 2
    convert("dit", ours, tmp_path / "back", "mindspore-to-torch", target_naming="diffusers")
    again = fresh(tmp_path / "back")
    assert dict(again.config).items() >= dict(num_attention_heads=2, attention_head_dim=16, **SIZES).items()
    np.testing.assert_array_equal(run_theirs(again), expected)


@pytest.mark.parametrize("saved_by", ["pipeline", "transformer"])
def test_an_adapter_of_theirs_changes_ours_as_theirs(theirs, tmp_path, saved_by):
    """r 4 and alpha 16, said in the header; two layers of another rank."""
    _, folder, ours = theirs
    model = fresh(folder)
    plain = run_theirs(model)
    torch.manual_seed(1)
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, rank_pattern={"attn1.to_k": 2},
                                      target_modules=["to_q", "to_k", "to_out.0", "ffn.net.2"]), adapter_name="mine")
    change = run_theirs(model) - plain
    if saved_by == "transformer":
        model.save_lora_adapter(tmp_path, "mine")
    else:
        from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

        WanLoraLoaderMixin.save_lora_weights(
            tmp_path, peft.get_peft_model_state_dict(model, adapter_name="mine"),
            transformer_lora_adapter_metadata=model.peft_config["mine"].to_dict())
    summary = convert_lora(tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "adapter")
    assert "rank 2, 4, alpha / rank 4, 8 by lora_adapter_metadata" in str(summary)
    own = run_ours(ours, [(tmp_path / "adapter", 1.0)]) - run_ours(ours)
    assert relative_error(own, change) < 1e-5
    assert relative_error(change + plain, plain) > 0.1
    convert_lora(tmp_path / "adapter", tmp_path / "back.safetensors", "mindspore-to-torch", target_naming="diffusers")
    again = load_adapter(fresh(folder), tmp_path / "back.safetensors")
    assert relative_error(run_theirs(again) - plain, own) < 1e-5


def test_what_train_writes_does_there_what_it_does_here(theirs, tmp_path):
    from ospnext_ms.parallel.mesh import Mesh
    from ospnext_ms.runtime import start
    from ospnext_ms.training.loop import Trainer

    _, folder, ours = theirs
    values = train_runs.adapter_settings(tmp_path / "run", None, ours, steps=2)
    values["model"]["dit"] = {"dim": 32, "num_heads": 2, "text_len": TEXT_LEN, "skiparse": "full", **SIZES}
    values["lr_schedule"] |= {"learning_rate": 0.1, "lr_end": 0.1, "warmup_steps": 0}
    config = train_runs.read_config(tmp_path / "run.yaml", values)
    trainer = Trainer(config, start(config.context), Mesh.single())
    trainer.run()
    adapter = trainer.store.newest().path / "adapter"
    convert_lora(adapter, tmp_path / "e.safetensors", "mindspore-to-torch", target_naming="diffusers")
    model = fresh(folder)
    plain = run_theirs(model)
    adapted = run_theirs(load_adapter(model, tmp_path / "e.safetensors"))
    assert relative_error(adapted, plain) > 1e-2
    assert relative_error(adapted, trainer.net(*map(Tensor, inputs())).asnumpy()) < 1e-5


def test_the_whole_pipeline_loads_an_exported_adapter(theirs, tmp_path):
    _, folder, _ = theirs
    model = fresh(folder)
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_v"]))
    expected = run_theirs(model)
    model.save_lora_adapter(tmp_path)
    convert_lora(tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "adapter")
    convert_lora(tmp_path / "adapter", tmp_path / "e.safetensors", "mindspore-to-torch", target_naming="diffusers")
    pipeline = diffusers.WanPipeline(None, None, None, diffusers.FlowMatchEulerDiscreteScheduler(), fresh(folder))
    pipeline.load_lora_weights(str(tmp_path), weight_name="e.safetensors")
    assert relative_error(run_theirs(pipeline.transformer), expected) < 1e-6


def test_the_other_networks_bring_their_configuration_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    for kind, load in (("vae", diffusers.AutoencoderKLWan), ("umt5", transformers.UMT5EncoderModel)):
        state = {name: torch.nan_to_num(tensor) for name, tensor in random_state(kind, "diffusers").items()}
        convert(kind, write_source(tmp_path / f"{kind}.safetensors", state), tmp_path / kind, "mindspore-to-torch",
                target_naming="diffusers")
        loaded = load.from_pretrained(tmp_path / kind, low_cpu_mem_usage=False).state_dict()
        for name, tensor in state.items():
            assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(("width", "heads", "said"), [
    (16, None, "no config.json: nothing says how many heads a width of 16 has, give --config"), (16, 2, None)])
def test_heads_that_nothing_says(tmp_path, width, heads, said):
    source = write_source(tmp_path / "w.safetensors", random_state("dit"))
    config = None
    if heads:
        config = tmp_path / "run.yaml"
        config.write_text(f"model:\n  dit: {{dim: {width}, num_heads: {heads}, text_len: 9, skiparse: dual_end, "
                          "sparse_ratio: 2, num_full_blocks: 0}\n")
    summary = convert("dit", source, tmp_path / "t", "mindspore-to-torch", config=config)
    assert summary.about_config == said
    assert (tmp_path / "t" / "config.json").is_file() == (heads is not None)
    if heads:
        content = json.loads((tmp_path / "t" / "config.json").read_text())
        assert content.items() >= {"_class_name": "OSPNextModel", "num_heads": 2, "text_len": 9, "dim": width,
                                   "skiparse_model_type": "dual_end", "num_full_blocks": 0}.items()
        summary = convert("dit", source, tmp_path / "d", "mindspore-to-torch", config=config,
                          target_naming="diffusers")
        assert "the sparse pattern is not part of its config.json" in str(summary)
