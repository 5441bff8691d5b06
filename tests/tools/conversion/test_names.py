"""The converter's tables: shapes against the released checkpoints, names against diffusers and transformers, which
must compute the same numbers from the renamed weights."""

import json

import pytest

from ospnext_ms.models.config import DiTConfig, UMT5Config, VAEConfig
from ospnext_ms.models.parameters import expected_shapes
from tests.support.compare import relative_error
from tests.support.paths import FACTS
from tools.conversion.names import detect_naming, drop_superfluous, to_naming
from tools.conversion.sizes import infer_sizes, sizes_from_config

DIT_COMMON = {"freq_dim": 256, "text_dim": 4096, "in_channels": 16, "out_channels": 16, "patch_size": (1, 2, 2)}
RELEASED = {
    "dit_14b_names": ("dit", {"dim": 5120, "ffn_dim": 13824, "num_layers": 40, **DIT_COMMON}),
    "dit_1_3b_names": ("dit", {"dim": 1536, "ffn_dim": 8960, "num_layers": 30, **DIT_COMMON}),
    "umt5_xxl_encoder_names": ("umt5", {"vocab_size": 256384, "dim": 4096, "ffn_dim": 10240, "num_heads": 64,
                                        "num_layers": 24, "num_buckets": 32}),
    "wan_vae_names": ("vae", {"dim": 96, "z_dim": 16}),
}


def facts(name):
    return {key: tuple(shape) for key, shape in json.loads((FACTS / f"{name}.json").read_text()).items()}


@pytest.mark.parametrize("name", RELEASED)
def test_expected_shapes_are_those_of_the_released_checkpoints(name):
    kind, sizes = RELEASED[name]
    assert expected_shapes(kind, sizes) == facts(name)


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("name", RELEASED)
def test_sizes_are_read_off_the_shapes(name, naming):
    kind, sizes = RELEASED[name]
    shapes = {to_naming(kind, key, naming): shape for key, shape in facts(name).items()}
    assert len(shapes) == len(facts(name))
    assert detect_naming(kind, shapes) == naming
    assert infer_sizes(kind, naming, shapes) == sizes


def test_sizes_of_the_released_configurations():
    wan = {"_class_name": "WanModel", "dim": 1536, "eps": 1e-06, "ffn_dim": 8960, "freq_dim": 256, "in_dim": 16,
           "model_type": "t2v", "num_heads": 12, "num_layers": 30, "out_dim": 16, "text_len": 512}
    expected = {"dim": 1536, "ffn_dim": 8960, "freq_dim": 256, "in_channels": 16, "num_layers": 30, "out_channels": 16}
    assert sizes_from_config("dit", wan) == expected
    assert sizes_from_config("vae", wan) is None
    assert sizes_from_config("umt5", wan) is None


def test_a_runs_yaml_gives_sizes_too():
    run = {"run_mode": "generate", "model": {"dit": {"dim": 64, "text_len": 16}, "text_encoder": {"vocab_size": 128}}}
    assert sizes_from_config("dit", run) == {"dim": 64}
    assert sizes_from_config("umt5", run) == {"vocab_size": 128}
    assert sizes_from_config("vae", run) is None


@pytest.mark.parametrize(("config", "message"), [
    ({"_class_name": "AutoencoderKLWan", "dim_mult": [1, 2, 4]}, r"dim_mult is \[1, 2, 4\].*only \[1, 2, 4, 4\]"),
    ({"_class_name": "AutoencoderKLWan", "base_dim": "96"}, "dim is '96'"),
])
def test_configurations_of_other_networks(config, message):
    with pytest.raises(ValueError, match=message):
        sizes_from_config("vae", config)


@pytest.mark.parametrize("names", [["shared.weight", "encoder.embed_tokens.weight"], ["encoder.embed_tokens.weight"]])
def test_only_known_superfluous_tensors_are_dropped(names):
    names = [*names, "encoder.final_layer_norm.weight", "decoder.block.0.x", "lm_head.weight", "encoder.odd"]
    kept, dropped = drop_superfluous("umt5", "diffusers", {name: name for name in names})
    assert set(kept) == {"shared.weight", "encoder.final_layer_norm.weight", "encoder.odd"}
    assert sum(len(group) for group in dropped.values()) == len(names) - 3
    assert drop_superfluous("dit", "diffusers", {"lm_head.weight": 0}) == ({"lm_head.weight": 0}, {})


def randomise(module):
    """Weights far from their symmetric initial values, so that two exchanged ones show."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 1 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.5
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + 1 if "norm" in name and name.endswith(("weight", "gamma")) else noise)
    return module.eval().requires_grad_(False)


def load_renamed(reference, kind, state):
    """Loads diffusers' weights into the reference network by the converter's own steps."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert detect_naming(kind, state) == "diffusers"
    expected = expected_shapes(kind, infer_sizes(kind, "diffusers", shapes))
    assert {to_naming(kind, name, "diffusers"): shape for name, shape in expected.items()} == shapes
    reference.load_state_dict({name: state[to_naming(kind, name, "diffusers")] for name in expected}, strict=True)
    return reference.eval()


@pytest.mark.framework
def test_transformer_of_diffusers_computes_the_same():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from tools.torch_reference.dit import OSPNextDiT

    theirs = randomise(diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=16, out_channels=16, text_dim=20, freq_dim=32,
        ffn_dim=80, num_layers=3, rope_max_seq_len=32))
    config = DiTConfig(dim=48, ffn_dim=80, num_heads=2, num_layers=3, freq_dim=32, text_dim=20, text_len=7,
                       skiparse="full")
    ours = load_renamed(OSPNextDiT(config), "dit", theirs.state_dict())
    assert sizes_from_config("dit", dict(theirs.config)) == infer_sizes(
        "dit", "diffusers", {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()})
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 16, 3, 8, 12, generator=generator), torch.tensor([3.0, 871.0])
    text = torch.randn(2, 7, 20, generator=generator)
    with torch.no_grad():
        expected, actual = theirs(x, t, text, return_dict=False)[0], ours(x, t, text)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.framework
def test_vae_of_diffusers_computes_the_same():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from tools.torch_reference.vae import WanVAE

    theirs = randomise(diffusers.AutoencoderKLWan(base_dim=6, z_dim=16))
    ours = load_renamed(WanVAE(VAEConfig(dim=6)), "vae", theirs.state_dict())
    assert sizes_from_config("vae", dict(theirs.config)) == {"dim": 6, "z_dim": 16}
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(1, 3, 9, 32, 24, generator=generator) * 2 - 1
    latent = torch.randn(1, 16, 3, 4, 3, generator=generator)
    with torch.no_grad():
        moments = theirs.encode(video).latent_dist
        mu, log_var = ours.encode_moments(video)
        assert relative_error(mu, moments.mean) < 1e-5
        assert relative_error(log_var.clamp(-30, 20), moments.logvar) < 1e-5
        decoded = theirs.decode(latent, return_dict=False)[0]
        assert decoded.abs().lt(1).float().mean() > 0.2, "a saturated output would compare nothing"
        assert relative_error(ours.decode_raw(latent).clamp(-1, 1), decoded) < 1e-5


@pytest.mark.framework
def test_encoder_of_transformers_computes_the_same():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from tools.torch_reference.umt5 import UMT5Encoder

    config = transformers.UMT5Config(vocab_size=50, d_model=24, d_kv=6, num_heads=4, d_ff=40, num_layers=3,
                                     dropout_rate=0.0)
    theirs = randomise(transformers.UMT5EncoderModel(config))
    state, dropped = drop_superfluous("umt5", "diffusers", theirs.state_dict())
    assert dropped == {"a second name of shared.weight": ["encoder.embed_tokens.weight"]}
    sizes = {"vocab_size": 50, "dim": 24, "ffn_dim": 40, "num_heads": 4, "num_layers": 3}
    ours = load_renamed(UMT5Encoder(UMT5Config(**sizes)), "umt5", state)
    assert sizes_from_config("umt5", config.to_dict()) == {**sizes, "num_buckets": 32}
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(40) < torch.tensor([[40], [23]])).long()
    with torch.no_grad():
        expected, actual = theirs(ids, mask).last_hidden_state, ours(ids, mask)
    assert relative_error(actual[mask.bool()], expected[mask.bool()]) < 1e-5
