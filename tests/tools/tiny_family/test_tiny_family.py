import string
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ospnext_ms.diffusion.flow import training_sigmas
from ospnext_ms.models.config import VAEConfig
from tests.support.configs import write_config
from tools.tiny_family import digits, judge, models, train_vae
from tools.tiny_family.evaluation import judge_all
from tools.tiny_family.loop import Budget, Ema, StageLog, save_weights
from tools.tiny_family.recipe import FOLDER, Phase, load_recipe
from tools.tiny_family.tokenizer import TEXT_LEN, VOCAB_SIZE, build_tokenizer, caption_corpus, tokenize
from tools.tiny_family.train import main as train
from tools.tiny_family.train_dit import draw_batch, draw_sigmas
from tools.torch_reference.vae import WanVAE

MAX_PARAMETERS = 7_300_000
SMOKE_RECIPE = """
seed: 0
models:
  vae: {dim: 2}
  text_encoder: {vocab_size: 170, dim: 16, ffn_dim: 32, num_heads: 2, num_layers: 1}
  dit: {dim: 32, ffn_dim: 64, num_heads: 2, num_layers: 8, freq_dim: 16, text_dim: 16, text_len: 32,
        skiparse: dual_end, sparse_ratio: 2, num_full_blocks: 4}
vae: {minutes: 5, max_steps: 3, num_clips: 2, learning_rate: 2.0e-3, kl_weight: 3.0e-5, edge_weight: 0.5,
      ema_decay: 0.9, precision: fp32, phases: [{until: 0.6, crop: 32, frames: 5, batch_size: 2},
      {until: 1.0, crop: 64, frames: 9, batch_size: 1}], normalise_clips: 1, evaluation_clips: 1}
full: &dit {minutes: 5, max_steps: 3, num_clips: 2, batch_size: 2, learning_rate: 1.0e-2, weight_decay: 0.01,
      prompt_dropout: 0.1, shift: 3.0, ema_decay: 0.9, precision: fp32, evaluation_clips: 1}
sparse: *dit
sampling: {num_steps: 1, shift: 3.0, guidance: 3.0}
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_tokenizer_round_trip(tokenizer):
    assert len(tokenizer) <= VOCAB_SIZE
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    for text in ["a bright 3 drifting left", "Zebra Quartz #42, jumping!", *caption_corpus(100, seed=9)]:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == 1
        assert 2 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.lower()


def test_tokenizer_knows_every_letter_and_digit(tokenizer):
    for character in string.ascii_letters + string.digits + string.punctuation:
        assert 2 not in tokenizer(character)["input_ids"]


def test_captions_fit_and_the_empty_prompt_is_the_end_token(tokenizer):
    ids, mask = tokenize(tokenizer, [*caption_corpus(500, seed=3), ""])
    assert ids.shape == (511, TEXT_LEN)
    assert mask.sum(1).max() < TEXT_LEN
    assert ids[-1].tolist() == [1] + [0] * (TEXT_LEN - 1)
    assert mask[-1].sum() == 1


def test_shipped_tokenizer_is_the_one_built_here(tokenizer):
    shipped = AutoTokenizer.from_pretrained(FOLDER / "weights" / "tokenizer", local_files_only=True)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped("a dim 5 moving up")["input_ids"] == tokenizer("a dim 5 moving up")["input_ids"]


def test_recipe_fits_its_limits():
    recipe = load_recipe()
    networks = (recipe.dit_full, recipe.dit_sparse, recipe.vae_model, recipe.text_encoder)
    assert sum(map(models.parameter_count, networks)) <= MAX_PARAMETERS
    assert recipe.text_encoder.vocab_size >= len(build_tokenizer())
    assert recipe.dit_sparse.block_patterns.count("full") == 4
    assert set(recipe.dit_full.block_patterns) == {"full"}


def test_recipe_rejects_unknown_keys(tmp_path):
    values = yaml.safe_load((FOLDER / "train.yaml").read_text())
    values["vae"]["learning_rte"] = 1
    with pytest.raises(ValueError, match="learning_rte"):
        load_recipe(write_config(tmp_path / "train.yaml", values))


def test_clips_depend_on_seed_and_number_alone():
    clips, captions, labels = digits.make_clips(4, 2, 3, workers=2)
    assert clips.shape == (3, 17, 128, 128, 3)
    one, caption, label = digits.make_clips(4, 3, 1)
    np.testing.assert_array_equal(one[0], clips[1])
    assert (caption[0], label[0]) == (captions[1], labels[1])
    assert digits.captions_of_clips(4, 2, 3) == captions


def test_splits_share_no_scan():
    glyphs = digits.load_glyphs()
    assert len(glyphs["train"][0]) + len(glyphs["held_out"][0]) == 1797
    assert len(glyphs["held_out"][0]) == 360
    shown = {glyph.tobytes() for glyph in glyphs["held_out"][0]}
    assert not any(glyph.tobytes() in shown for glyph in glyphs["train"][0])


@pytest.mark.parametrize("direction", digits.DIRECTIONS)
def test_digits_stay_inside_the_frame(direction):
    for i in range(6):
        clip, _, _ = digits.make_clip(np.random.default_rng(i), direction=direction)
        mass = clip.reshape(17, -1).sum(1, dtype=np.float64)
        assert mass.min() > 0.98 * mass.max()


def test_caption_says_what_the_label_says():
    rng = np.random.default_rng(0)
    label = digits.ClipLabel(3, "left", "slowly", "small", "bright")
    for _ in range(20):
        words = digits.caption_of(label, rng).split()
        assert {"bright", "small", "left", "slowly"} < set(words)
        assert {"3", "three"} & set(words)
    assert digits.caption_of(digits.ClipLabel(1, "still"), rng).endswith("standing still")


def test_unknown_split_and_direction_are_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="sideways"):
        digits.make_clip(rng, direction="sideways")
    with pytest.raises(ValueError, match="held_out"):
        digits.make_clip(rng, split="test")


def test_judge_agrees_with_labels_of_held_out_digits():
    rng = np.random.default_rng(5)
    clips, labels = [], []
    for _ in range(200):
        clip, _, label = digits.make_clip(rng, "held_out", two_digits=False)
        clips.append(clip)
        labels.append(label)
    verdicts = judge_all(clips, workers=2)
    assert np.mean([v.digit == label["digit"] for v, label in zip(verdicts, labels, strict=True)]) >= 0.97
    assert np.mean([v.direction == label["direction"] for v, label in zip(verdicts, labels, strict=True)]) >= 0.99
    assert judge.scan_accuracy("held_out") >= 0.97
    for verdict in verdicts[:5]:
        assert verdict.digit_probabilities.sum() == pytest.approx(1)
        assert verdict.digit_probabilities.argmax() == verdict.digit


def test_judge_is_not_fooled_by_the_label_order():
    """A clip played backwards moves the other way."""
    clip, _, _ = digits.make_clip(np.random.default_rng(1), direction="left", two_digits=False)
    assert judge.judge_clip(clip).direction == "left"
    assert judge.judge_clip(clip[::-1]).direction == "right"


def test_judge_sees_nothing_in_the_dark_and_rejects_other_input():
    assert judge.judge_clip(np.zeros((17, 128, 128, 3), np.uint8)) == judge.NOTHING
    with pytest.raises(ValueError, match="uint8"):
        judge.judge_clip(np.zeros((17, 128, 128, 3), np.float32))


def test_normalised_latents_are_standard_and_the_decoder_does_not_notice():
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(dim=4), latents_per_chunk=None).eval()
    clips = torch.randint(0, 256, (4, 5, 32, 32, 3), dtype=torch.uint8)
    video = models.to_video(clips, "cpu")
    with torch.no_grad():
        mean, log_var = vae.encode_moments(video)
        before = vae.decode_raw(mean)
        _, std = train_vae.channel_statistics(vae, clips)
        train_vae.normalise_latents(vae, clips, StageLog(Budget(1)))
        latents, (new_mean, new_log_var) = vae.encode(video), vae.encode_moments(video)
        after = vae.decode_raw(new_mean)
    assert (std > train_vae.MIN_CHANNEL_STD).all()
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    noise_before = torch.exp(0.5 * log_var) / mean.std((0, 2, 3, 4), keepdim=True)
    noise_after = torch.exp(0.5 * new_log_var) / new_mean.std((0, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(noise_after, noise_before, rtol=1e-3, atol=0)


def test_crops_are_pieces_of_the_clips():
    clips = torch.zeros(1, 9, 64, 64, 3, dtype=torch.uint8)
    clips[..., 20, 40, :] = 255
    generator = torch.Generator().manual_seed(0)
    video = train_vae.draw_crops(clips, Phase(until=1.0, crop=16, frames=5, batch_size=8), generator)
    assert video.shape == (8, 3, 5, 16, 16)
    assert ((video == 1).sum((1, 3, 4)) == 3).all()


def test_sigmas_are_those_of_the_package():
    torch.manual_seed(2)
    sigma = draw_sigmas(1000, 3.0, "cpu")
    torch.manual_seed(2)
    u = torch.randn(1000).sigmoid()
    np.testing.assert_allclose(sigma, training_sigmas(u.numpy(), 3.0), rtol=1e-5)


def test_dropped_prompts_are_the_last_row():
    stage = SimpleNamespace(batch_size=4000, prompt_dropout=0.1)
    latents = torch.arange(5.0).view(5, 1)
    torch.manual_seed(0)
    x0, chosen = draw_batch(latents, stage)
    kept = chosen < 5
    assert (~kept).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (chosen[~kept] == 5).all()
    assert (x0[kept, 0] == chosen[kept]).all()


def test_learning_rate_follows_the_budget():
    budget = Budget(minutes=1, max_steps=100)
    rates = []
    while budget.progress < 1:
        rates.append(budget.learning_rate_factor())
        budget.advance()
    assert len(rates) == 100
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates.index(max(rates)) == 3
    assert rates[-1] < 0.03


def test_average_follows_the_weights():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    ema = Ema(module, decay=0.5)
    torch.nn.init.ones_(module.weight)
    for _ in range(3):
        ema.update()
    ema.copy_to_module()
    # Decays 1/11, 2/12 and 3/13, all below 0.5.
    assert module.weight.item() == pytest.approx(1 - 1 / 11 * 2 / 12 * 3 / 13)


def test_log_refuses_numbers_that_are_not_finite():
    with pytest.raises(FloatingPointError, match="nan"):
        StageLog(Budget(1)).note({"loss": torch.tensor(float("nan"))})


def test_weights_too_large_for_fp16_are_an_error(tmp_path):
    module = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(module.weight, 1e5)
    with pytest.raises(ValueError, match="weight"):
        save_weights(module, tmp_path / "weights.safetensors")


def test_stage_without_its_input_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(["--stage", "sparse", "--output", str(tmp_path), "--vae", str(tmp_path / "none.safetensors")])
    assert "--vae" in capsys.readouterr().err


@pytest.mark.slow
def test_the_three_stages_run_after_one_another(tmp_path):
    recipe = tmp_path / "train.yaml"
    recipe.write_text(SMOKE_RECIPE)
    common = ["--config", str(recipe), "--output", str(tmp_path), "--device", "cpu", "--workers", "2"]
    vae, encoder = str(tmp_path / "vae.safetensors"), str(tmp_path / "umt5.safetensors")
    full, cache = tmp_path / "dit_full.safetensors", str(tmp_path / "latents.safetensors")
    train(["--stage", "vae", *common])
    train(["--stage", "full", *common, "--vae", vae, "--latent-cache", cache])
    encoder_before = load_file(encoder)
    train(["--stage", "sparse", *common, "--vae", vae, "--text-encoder", encoder, "--init", str(full),
           "--latent-cache", cache])
    for name in ("vae", "dit_full", "dit_sparse"):
        log = yaml.safe_load((tmp_path / f"{name}.json").read_text())
        assert log["records"][-1]["step"] == 3
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert log["results"]["from_cache"] is True
    before, after = load_file(full), load_file(tmp_path / "dit_sparse.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(tensor, encoder_before[name]) for name, tensor in load_file(encoder).items())
