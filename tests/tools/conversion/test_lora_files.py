"""Adapters in the forms in which they are found: names, strength, and what is said about the others."""

import json
import re

import numpy as np
import pytest

from tests.support import adapters as ad
from tests.support.paths import ROOT
from tools.conversion.lora_files import open_adapter
from tools.conversion.lora_names import recognise

torch = pytest.importorskip("torch")

KOHYA = ("lora_down.weight", "lora_up.weight")
HEADER = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in {
    "r": ad.RANK, "lora_alpha": ad.ALPHA, "target_modules": ["to_q"], "rank_pattern": {}}.items()})}


def flat(layer):
    return layer.replace(".", "_")


def peft_folder(folder, arrays):
    path = ad.write_safetensors(folder / "adapter_model.safetensors", arrays)
    (folder / "adapter_config.json").write_text(ad.peft_config())
    return path.parent


def torch_file(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return path


def authors_folder(folder, arrays):
    torch_file(folder / "adapter_model.bin", arrays)
    (folder / "adapter_config.json").write_text(ad.peft_config())
    return folder


# Every form of the table in docs/convert.md, by a name in it: how its file is made, and --alpha where it is asked for.
FORMS = {
    "base_model.model.blocks.0.self_attn.q.lora_A.weight":
        (lambda p, to: peft_folder(to, ad.named(p, "base_model.model.")), None),
    "base_model.model.blocks.0.self_attn.q.lora_A.default.weight":
        (lambda p, to: authors_folder(to, ad.named(p, "base_model.model.", parts=(
            "lora_A.default.weight", "lora_B.default.weight"))), None),
    "transformer.blocks.0.attn1.to_q.lora_A.weight":
        (lambda p, to: ad.write_safetensors(to / "pytorch_lora_weights.safetensors", ad.named(
            p, "transformer.", ad.diffusers_name), HEADER), None),
    "blocks.0.attn1.to_q.lora_A.weight":
        (lambda p, to: ad.write_safetensors(to / "l.safetensors", ad.named(p, "", ad.diffusers_name)), ad.ALPHA),
    "transformer.blocks.0.attn1.to_q.lora.down.weight":
        (lambda p, to: ad.write_safetensors(to / "l.safetensors", ad.named(
            p, "transformer.", ad.diffusers_name, ("lora.down.weight", "lora.up.weight"), ad.ALPHA)), None),
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight":
        (lambda p, to: peft_folder(to, ad.named(p, "diffusion_model.")), None),
    "diffusion_model.blocks.0.self_attn.q.lora_down.weight":
        (lambda p, to: ad.write_safetensors(to / "l.safetensors", ad.named(
            p, "diffusion_model.", parts=KOHYA, alpha=ad.ALPHA)), None),
    "model.diffusion_model.blocks.0.self_attn.q.lora_down.weight":
        (lambda p, to: ad.write_safetensors(to / "l.safetensors", ad.named(
            p, "model.diffusion_model.", parts=KOHYA, alpha=ad.ALPHA)), None),
    "lora_unet_blocks_0_self_attn_q.lora_down.weight":
        (lambda p, to: ad.write_safetensors(to / "l.safetensors", ad.named(p, "lora_unet_", flat, KOHYA), {
            "ss_network_alpha": str(ad.ALPHA), "ss_network_dim": "2"}), None),
    "lora_unet_blocks_0.self_attn.q.lora_down.weight":
        (lambda p, to: ad.write_safetensors(to / "l.safetensors", ad.named(
            p, "lora_unet_", lambda layer: layer.replace("blocks.", "blocks_"), KOHYA, ad.ALPHA)), None),
    "lora_transformer_blocks_0_attn1_to_q.lora_down.weight":
        (lambda p, to: ad.write_safetensors(to / "l.safetensors", ad.named(
            p, "lora_transformer_", lambda layer: flat(ad.diffusers_name(layer)), KOHYA, ad.ALPHA)), None),
    "blocks.0.self_attn.q.lora_A.default.weight":
        (lambda p, to: torch_file(to / "l.pt", ad.named(p, parts=(
            "lora_A.default.weight", "lora_B.default.weight"))), ad.ALPHA),
    "module._orig_mod.blocks.0.self_attn.q.lora_A.weight":
        (lambda p, to: torch_file(to / "l.pth", ad.named(p, "module._orig_mod.", alpha=ad.ALPHA)), None),
}


@pytest.fixture
def pairs():
    return ad.random_pairs()


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_adapters(pairs, tmp_path, name):
    write, alpha = FORMS[name]
    opened = open_adapter(write(pairs, tmp_path / "source"), alpha)
    adapter = opened.adapter
    assert adapter.pairs.keys() == pairs.keys()
    for layer, pair in pairs.items():
        for array, wanted in zip(adapter.pairs[layer], pair, strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert adapter.scalings[layer] == ad.ALPHA / ad.RANK
    assert not adapter.differences
    if alpha is not None:
        with pytest.raises(ValueError, match=r"does not say how strong it is \(4 layers.*--alpha rank \(here 2\)"):
            open_adapter(tmp_path / "source")


def test_the_page_lists_these_forms_and_no_others():
    page = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w.]+)`", page, re.MULTILINE)
    assert [name for name in listed if ".lora" in name] == list(FORMS)


@pytest.mark.parametrize(("name", "layer", "part"), [
    ("diffusion_model.blocks.3.norm3.diff", "blocks.3.norm3", "weight difference"),
    ("diffusion_model.blocks.3.norm3.diff_b", "blocks.3.norm3", "bias difference"),
    ("transformer.blocks.3.norm2.diff_b", "blocks.3.norm3", "bias difference"),
    ("diffusion_model.blocks.3.self_attn.norm_k.diff", "blocks.3.self_attn.norm_k", "weight difference"),
    ("diffusion_model.blocks.3.diff_m", "blocks.3", "modulation difference"),
    ("diffusion_model.head.diff_m", "head", "modulation difference"),
    ("diffusion_model.head.head.diff", "head.head", "weight difference"),
    ("diffusion_model.time_projection.1.lora_up.weight", "time_projection.1", "B"),
    ("lora_unet_time_embedding_0.alpha", "time_embedding.0", "alpha"),
    ("transformer.condition_embedder.text_embedder.linear_1.lora_A.weight", "text_embedding.0", "A"),
    ("transformer.proj_out.lora_B.bias", "head.head", "bias"),
    ("transformer.blocks.11.attn2.to_out.lora_A.weight", "blocks.11.cross_attn.o", "A"),
])
def test_names_of_other_parts(name, layer, part):
    assert recognise(name)[:2] == (layer, part)


@pytest.mark.parametrize(("name", "message"), [
    ("lora_unet_blocks_0_self_attn_q.hada_w1_a", "LoHa .*merge it with what made it"),
    ("diffusion_model.blocks.0.self_attn.q.lokr_w1", "LoKr .*merge it with what made it"),
    ("diffusion_model.blocks.0.self_attn.q.dora_scale", "DoRA .*merge it"),
    ("blocks.0.self_attn.q.lora_magnitude_vector.weight", "DoRA .*merge it"),
    ("lora_unet_blocks_0_self_attn_q.oft_blocks", "OFT .*merge it"),
    ("lora_unet_blocks_0_cross_attn_k_img.lora_down.weight", "image-to-video .*take the text-to-video version"),
    ("transformer.blocks.0.attn2.add_k_proj.lora_A.weight", "image-to-video .*take the text-to-video version"),
    ("lora_te_encoder_block_0.lora_down.weight", "text encoder, which is not supported"),
    ("transformer_2.blocks.0.attn1.to_q.lora_A.weight", "second transformer of Wan2.2"),
    ("diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight", "VACE"),
    ("blocks.0.norm1.lora_A.weight", "a layer that the transformer has not"),
    ("blocks.0.norm3.lora_A.weight", "or that can have no such part"),
    ("blocks.0.self_attn.q.weight", "no part of a LoRA; .*a whole transformer is converted with dit"),
])
def test_what_is_refused_and_what_to_do(tmp_path, name, message):
    path = ad.write_safetensors(tmp_path / "l.safetensors", {name: np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match=message):
        open_adapter(path, "rank")


def test_rank_and_alpha_of_every_layer(tmp_path):
    """By alpha tensors, and by the patterns in the header of diffusers: of these the first that fits."""
    pairs = ad.random_pairs(ad.LAYERS[:2], 2) | ad.random_pairs(ad.LAYERS[2:], 4)
    arrays = ad.named(pairs, "transformer.", ad.diffusers_name)
    alphas = {layer: np.array(float(i + 1), np.float32) for i, layer in enumerate(pairs)}
    expected = {layer: float(alphas[layer]) / len(pairs[layer][0]) for layer in pairs}
    tensors = arrays | {f"transformer.{ad.diffusers_name(layer)}.alpha": alpha for layer, alpha in alphas.items()}
    opened = open_adapter(ad.write_safetensors(tmp_path / "a.safetensors", tensors))
    assert opened.adapter.scalings == expected
    assert opened.strength_from == "alpha tensors"
    header = {"r": 2, "lora_alpha": 3, "target_modules": [], "rank_pattern": {r"blocks\.1\..*": 4},
              "alpha_pattern": {"^blocks.0.attn1.to_q": 1, "attn2.to_out.0": 2, r"blocks\.\d+\.ffn\.net.0.proj": 4}}
    path = ad.write_safetensors(tmp_path / "b.safetensors", arrays, {"lora_adapter_metadata": json.dumps(header)})
    assert open_adapter(path).adapter.scalings == expected
    assert open_adapter(path, "rank").adapter.scalings == dict.fromkeys(pairs, 1.0)
    wrong = ad.write_safetensors(tmp_path / "c.safetensors", tensors, {
        "lora_adapter_metadata": json.dumps(header | {"lora_alpha": 9})})
    with pytest.raises(ValueError, match=r"contradicts itself, say with --alpha .*blocks.1.self_attn.q is 0.75 by "
                                         r"alpha tensors, 2.25 by lora_adapter_metadata"):
        open_adapter(wrong)
    assert open_adapter(wrong, 4).adapter.scalings == {layer: 4 / len(a) for layer, (a, _) in pairs.items()}


def test_rslora_divides_by_the_root_of_the_rank(pairs, tmp_path):
    folder = peft_folder(tmp_path, ad.named(pairs, "base_model.model."))
    (folder / "adapter_config.json").write_text(ad.peft_config(use_rslora=True))
    assert set(open_adapter(folder).adapter.scalings.values()) == {ad.ALPHA / ad.RANK**0.5}


def test_what_the_header_of_kohya_does_not_say(pairs, tmp_path):
    arrays = ad.named(pairs, "lora_unet_", flat, KOHYA)
    path = ad.write_safetensors(tmp_path / "l.safetensors", arrays, {"ss_network_alpha": "Dynamic"})
    with pytest.raises(ValueError, match="does not say how strong it is"):
        open_adapter(path)


def test_differences_and_biases(pairs, tmp_path):
    rng = np.random.default_rng(1)
    arrays = ad.named(pairs, "diffusion_model.", parts=KOHYA, alpha=ad.ALPHA)
    added = {"blocks.0.self_attn.q.diff_b": 7, "blocks.0.norm3.diff": 5, "blocks.0.diff_m": (1, 6, 5)}
    added = {name: rng.standard_normal(size, np.float32) for name, size in added.items()}
    arrays |= {f"diffusion_model.{name}": array for name, array in added.items()}
    arrays["diffusion_model.blocks.1.ffn.0.lora_up.bias"] = np.ones(7, np.float32)
    found = open_adapter(ad.write_safetensors(tmp_path / "l.safetensors", arrays)).adapter.differences
    expected = dict(zip(("blocks.0.self_attn.q.bias", "blocks.0.norm3.weight", "blocks.0.modulation"), added.values(),
                        strict=True)) | {"blocks.1.ffn.0.bias": np.full(7, 3.0)}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_dtypes(pairs, tmp_path, dtype):
    from safetensors.torch import save_file

    state = {name: torch.from_numpy(array).to(dtype) for name, array in ad.named(pairs).items()}
    save_file(state, tmp_path / "l.safetensors")
    for layer, found in open_adapter(tmp_path / "l.safetensors", 2).adapter.pairs.items():
        for part, array in zip("AB", found, strict=True):
            np.testing.assert_array_equal(array, state[f"{layer}.lora_{part}.weight"].float().numpy())


def test_a_whole_training_state_of_peft(pairs, tmp_path):
    """As OSP-Next's trainer saves it: the transformer and its adapter, views that are not contiguous among them."""
    state = {f"base_model.model.{layer}.lora_{part}.default.weight": torch.from_numpy(array.T.copy()).T
             for layer, pair in pairs.items() for part, array in zip("AB", pair, strict=True)}
    state["base_model.model.blocks.0.self_attn.q.base_layer.weight"] = torch.zeros(7, 5)
    state["base_model.model.blocks.0.norm3.weight"] = torch.zeros(5)
    torch.save({"ema": state, "model": state, "step": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"choose one with --key: ema \(10 tensors\), model \(10 tensors\)"):
        open_adapter(tmp_path / "w.pt", 64)
    opened = open_adapter(tmp_path / "w.pt", 64, "ema")
    for layer, pair in pairs.items():
        for array, wanted in zip(opened.adapter.pairs[layer], pair, strict=True):
            np.testing.assert_array_equal(array, wanted)
    assert opened.adapter.scalings["blocks.0.self_attn.q"] == 32
    assert {reason: len(names) for reason, names in opened.left_out.items()} == {
        "not chosen by --key ema": 1, "no weights": 1, "weights of the transformer itself": 2}


@pytest.mark.parametrize(("arrays", "message"), [
    ({"blocks.0.ffn.0.lora_A.weight": (2, 5)}, "blocks.0.ffn.0 has no lora_B or lora_up"),
    ({"blocks.0.ffn.0.lora_A.weight": (2, 5), "blocks.0.ffn.0.lora_B.weight": (7, 3)}, r"A \(2, 5\) and B \(7, 3\)"),
    ({"blocks.0.ffn.0.lora_A.weight": (2, 5), "blocks.0.ffn.net.0.proj.lora_down.weight": (2, 5)},
     "holds A of blocks.0.ffn.0 twice"),
    ({}, "holds no adapter"),
])
def test_parts_that_do_not_go_together(tmp_path, arrays, message):
    path = ad.write_safetensors(tmp_path / "l.safetensors", {name: np.zeros(shape, np.float32)
                                                             for name, shape in arrays.items()})
    with pytest.raises(ValueError, match=message):
        open_adapter(path, "rank")


def test_sources_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        open_adapter(tmp_path / "nowhere")
    (tmp_path / "l.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    with pytest.raises(ValueError, match="git LFS pointer"):
        open_adapter(tmp_path)
