"""Networks as they are configured: weights, adapter, quantisation, and what is said about what does not fit."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor

from ospnext_ms.build import assemble_dit, build_dit, build_text_encoder, build_vae, check_checkpoints
from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.hif8_format import encode_scaled
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.lora import Adapters, LoRAConfig
from ospnext_ms.models.umt5 import UMT5Encoder
from ospnext_ms.models.vae import WanVAE
from ospnext_ms.quant.hif8 import HiF8Linear
from ospnext_ms.quant.hif8_attention import AttentionInputs, HiF8Attention
from ospnext_ms.runtime import Runtime
from ospnext_ms.storage.open_weights import open_weights
from ospnext_ms.storage.peft_format import write_adapter
from ospnext_ms.storage.safetensors_io import write_file
from ospnext_ms.storage.weights import load_weights, save_weights
from tests.support import generate_runs as runs
from tests.support.compare import relative_error
from tests.support.dit_twins import random_inputs
from tools.conversion.quantised import quantise

RUNTIME = Runtime("CPU", ms.float32, False)
LORA = LoRAConfig(rank=2, alpha=4.0, targets=("q", "ffn.0"))


@pytest.fixture
def model(model_files):
    """ModelSection of the random model."""
    return read_section(GenerateConfig, runs.settings(model_files)).model


def outputs(net, config):
    return net(*map(Tensor, random_inputs(config, (2, 4, 4), batch=1, text_len=5))).asnumpy()


@pytest.fixture
def adapter(model, tmp_path):
    """(folder, {layer: (A, B)}) of an adapter that changes something."""
    adapters = assemble_dit(model.dit, RUNTIME, lora=LORA).adapters
    rng = np.random.default_rng(0)
    arrays = {name: (a, rng.standard_normal(b.shape).astype(np.float32)) for name, (a, b) in adapters.arrays().items()}
    write_adapter(tmp_path / "adapter", LORA, arrays)
    return tmp_path / "adapter", arrays


def test_a_plain_transformer_is_the_network_with_the_checkpoint(model):
    plain = OSPNextDiT(model.dit)
    load_weights(plain, model.dit.checkpoint)
    net = build_dit(model.dit, RUNTIME)
    assert isinstance(net, OSPNextDiT)
    assert not net.training
    assert np.array_equal(outputs(net, model.dit), outputs(plain, model.dit))


def test_quantised_as_configured(model):
    section = replace(model.dit, quant="hif8", quant_attention="hif8")
    net = build_dit(section, RUNTIME)
    block = net.blocks[0]
    assert isinstance(block.ffn[0], HiF8Linear)
    assert isinstance(block.self_attn.inputs, AttentionInputs)
    assert isinstance(block.cross_attn.attention, HiF8Attention)
    assert 1e-3 < relative_error(outputs(net, section), outputs(build_dit(model.dit, RUNTIME), section)) < 0.2


HELD = {"quant": "hif8", "quant_attention": "hif8"}


@pytest.mark.parametrize(("stored", "compiled"), [("full precision", False), ("8 bits", False),
                                                  pytest.param("full precision", True, marks=pytest.mark.slow)])
def test_weights_held_in_8_bits_give_the_same_bits(model, tmp_path, stored, compiled):
    """As quantising them in every call does; held so where they are not trained, from checkpoints of either kind."""
    section, runtime = replace(model.dit, **HELD), replace(RUNTIME, compiled=compiled)
    if stored == "8 bits":
        tensors, _ = quantise(open_weights(section.checkpoint))
        write_file(tmp_path / "dit.safetensors", tensors)
        section = replace(section, checkpoint=str(tmp_path / "dit.safetensors"))
    held = build_dit(section, runtime)
    trained = assemble_dit(section, runtime, tensors=open_weights(section.checkpoint), training=True).net
    linears = [cell for _, cell in held.cells_and_names() if isinstance(cell, HiF8Linear)]
    assert len(linears) == 10 * section.num_layers
    assert all(cell.weight.dtype == ms.uint8 for cell in linears)
    assert all(parameter.dtype != ms.uint8 for parameter in trained.get_parameters())
    # Networks that are trained differ in nothing but what is kept.
    trained.set_train(False)
    pair = [outputs(runtime.compile(net), section) for net in (held, trained)]
    assert np.array_equal(*pair)


def test_numbers_are_rounded_to_the_dtype_that_would_hold_them(model):
    """In bf16 first, as weights were that are quantised in every call."""
    section = replace(model.dit, **HELD)
    name = "blocks.0.ffn.0.weight"
    stored = open_weights(section.checkpoint)[name].numpy().astype(np.float32)
    for dtype in (ms.float32, ms.bfloat16):
        net = assemble_dit(section, RUNTIME, tensors=open_weights(section.checkpoint), param_dtype=dtype).net
        numbers = Tensor(stored).astype(dtype).astype(ms.float32).asnumpy()
        codes, scale = encode_scaled(numbers, 15.0)
        assert np.array_equal(net.blocks[0].ffn[0].weight.asnumpy(), codes)
        assert np.array_equal(net.blocks[0].ffn[0].code_scale.asnumpy(), scale)


def test_adapters_beside_weights_held_in_8_bits(model, adapter):
    """Output and gradients of the adapters, bit by bit."""
    section, tensors = replace(model.dit, **HELD), open_weights(model.dit.checkpoint)
    inputs = [Tensor(array) for array in random_inputs(section, (2, 4, 4), batch=1, text_len=5)]
    results = []
    for is_held in (True, False):
        built = assemble_dit(section, RUNTIME, tensors=tensors, training=True, **({"adapter": adapter[0]} if is_held
                                                                                  else {}))
        adapters = built.adapters
        if not is_held:
            adapters = Adapters(built.net, LORA)
            adapters.load(adapter[1])
        weights = ParameterTuple(adapters.parameters)
        value, gradients = ms.value_and_grad(lambda *x, net=built.net: net(*x).sum(), None, weights)(*inputs)
        results.append([value.asnumpy(), *(gradient.asnumpy() for gradient in gradients)])
        assert (built.net.blocks[0].ffn[0].weight.dtype == ms.uint8) == is_held
    assert all(np.array_equal(held, plain) for held, plain in zip(*results, strict=True))
    assert any(array.any() for array in results[0][1:])


def test_adapted_as_stored(model, adapter):
    folder, arrays = adapter
    built = assemble_dit(model.dit, RUNTIME, tensors=open_weights(model.dit.checkpoint), adapter=folder)
    assert built.adapters.config.rank == LORA.rank
    for name, (a, b) in built.adapters.arrays().items():
        assert np.array_equal(a, arrays[name][0])
        assert np.array_equal(b, arrays[name][1])
    assert set(built.net.trainable_params()) == set(built.adapters.parameters)
    adapted, plain = build_dit(model.dit, RUNTIME, adapters=[(folder, 1.0)]), build_dit(model.dit, RUNTIME)
    assert np.array_equal(outputs(adapted, model.dit), outputs(built.net, model.dit))
    assert relative_error(outputs(adapted, model.dit), outputs(plain, model.dit)) > 1e-2
    with built.adapters.disabled():
        assert relative_error(outputs(built.net, model.dit), outputs(plain, model.dit)) < 1e-6


def test_adapters_of_several_kinds_on_a_quantised_network(model, adapter):
    """They stay exact beside weights in 8 bits, and are held in the dtype that they compute in."""
    folder, _ = adapter
    section = replace(model.dit, quant="hif8")
    quantised = outputs(build_dit(section, RUNTIME), section)
    change = outputs(build_dit(section, RUNTIME, adapters=[(folder, 0.5), (folder, 0.25)]), section) - quantised
    plain = outputs(build_dit(model.dit, RUNTIME), section)
    expected = outputs(build_dit(model.dit, RUNTIME, adapters=[(folder, 0.75)]), section) - plain
    assert relative_error(change, expected) < 0.2
    net = build_dit(model.dit, Runtime("Ascend", ms.bfloat16, False), adapters=[(folder, 1.0)])
    assert net.blocks[0].ffn[0].adapter.lora_A.dtype == ms.bfloat16
    assert not net.blocks[0].ffn[0].adapter.lora_B.requires_grad


def test_an_adapter_of_another_size_is_refused(model, adapter):
    with pytest.raises(ValueError, match="has alpha 4 at rank 2, but lora.alpha is 4 at rank 3; it would be"):
        assemble_dit(model.dit, RUNTIME, lora=replace(LORA, rank=3), adapter=adapter[0])


def test_without_tensors_weights_begin_at_random_by_the_seed(model):
    nets = []
    for seed in (0, 0, 1):
        ms.set_seed(seed)
        nets.append(assemble_dit(model.dit, RUNTIME, training=True).net)
    weights = [net.blocks[0].ffn[0].weight.asnumpy() for net in nets]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    assert nets[0].training


@pytest.mark.parametrize("residual_dtype", ["fp32", "bf16"])
def test_dtypes_of_weights_and_of_the_residual_stream(model, residual_dtype):
    net = assemble_dit(model.dit, Runtime("Ascend", ms.float16, False), param_dtype=ms.float32,
                       residual_dtype=residual_dtype).net
    assert net.blocks[0].ffn[0].weight.dtype == ms.float32
    assert net.blocks[0].ffn[0].dtype == ms.float16
    assert net.residual_dtype == {"fp32": ms.float32, "bf16": ms.bfloat16}[residual_dtype]


def test_a_checkpoint_that_does_not_fit_or_is_not_there(model):
    with pytest.raises(ValueError, match=r"dit\.safetensors does not fit the network, nothing was loaded"):
        build_dit(replace(model.dit, ffn_dim=128), RUNTIME)
    with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere"):
        build_dit(replace(model.dit, checkpoint="nowhere"), RUNTIME)


def test_autoencoder_and_text_encoder_have_their_weights(model):
    for built, network, section in ((build_vae(model.vae, False), WanVAE, model.vae),
                                    (build_text_encoder(model.text_encoder, RUNTIME), UMT5Encoder, model.text_encoder)):
        expected = network(section)
        load_weights(expected, section.checkpoint)
        assert not built.training
        pairs = list(zip(built.get_parameters(), expected.get_parameters(), strict=True))
        assert all(np.array_equal(mine.asnumpy(), other.asnumpy()) for mine, other in pairs)
        assert len(pairs) > 10


def test_checkpoints_are_compared_with_what_is_configured(model):
    check_checkpoints(replace(model, dit=replace(model.dit, quant="hif8")))
    deeper = replace(model, text_encoder=replace(model.text_encoder, num_layers=2))
    with pytest.raises(ValueError, match=r"model\.text_encoder: .* does not fit the configured shape:\nmissing"):
        check_checkpoints(deeper)


@pytest.mark.parametrize("before", ["model.diffusion_model.", "module."])
def test_weights_that_are_a_part_of_something_are_to_be_converted(model, tmp_path, before):
    stored = {before + name: tensor.numpy() for name, tensor in open_weights(model.dit.checkpoint).items()}
    save_weights(stored | {"vae.conv1.weight": np.zeros(1, np.float32)}, tmp_path / "all.safetensors")
    elsewhere = replace(model, dit=replace(model.dit, checkpoint=str(tmp_path / "all.safetensors")))
    with pytest.raises(ValueError, match=f"a part of something, {before}.*convert_checkpoint.py dit") as caught:
        check_checkpoints(elsewhere)
    assert "\n" not in str(caught.value)
