"""Stages `full` and `sparse`: flow matching on latents, prompt dropped in 10 % of the cases.

`full` trains text encoder and DiT together from nothing; `sparse` starts the sparse DiT from the full one's averaged
weights (the parameters are the same) and leaves the text encoder as it is.
"""

import time

import numpy as np
import torch
from transformers import AutoTokenizer

from tools.tiny_family import models
from tools.tiny_family.evaluation import accuracy, balanced_prompts, judge_all, noise_of, score
from tools.tiny_family.latents import encoded_clips
from tools.tiny_family.loop import Budget, Ema, StageLog, precision_context, save_weights
from tools.tiny_family.recorded import RecordedStep
from tools.tiny_family.sheet import write_sheet
from tools.tiny_family.tokenizer import tokenize
from tools.torch_reference.dit import OSPNextDiT
from tools.torch_reference.flow import velocity_loss
from tools.torch_reference.loading import load
from tools.torch_reference.umt5 import UMT5Encoder

EVALUATION_SEED = 7


def train_dit(recipe, arguments):
    """Trains one DiT and writes its weights (and, for `full`, the text encoder's), log and contact sheet."""
    name, device, output = arguments.stage, arguments.device, arguments.output
    stage = getattr(recipe, name)
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer, local_files_only=True)
    if len(tokenizer) > recipe.text_encoder.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} pieces, text_encoder.vocab_size is "
                         f"{recipe.text_encoder.vocab_size}; valid: at least as many")
    vae = models.load_vae(recipe.vae_model, arguments.vae, device)
    budget = Budget(stage.minutes, stage.max_steps)
    log = StageLog(budget)
    latents, captions = encoded_clips(recipe.seed, stage.num_clips, vae, arguments, log)
    ids, mask = tokenize(tokenizer, [*captions, models.NEGATIVE_PROMPT], recipe.dit_full.text_len)
    data = latents, torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
    model = models.TextToVelocity(UMT5Encoder(recipe.text_encoder), OSPNextDiT(recipe.dit(name))).to(device)
    if name == "sparse":
        load(model.dit, arguments.init)
        load(model.text_encoder, arguments.text_encoder).requires_grad_(False)
    trained = model if name == "full" else model.dit
    optimise(model, trained, data, stage, budget, log, recipe.seed)
    dit_path, encoder_path = output / f"dit_{name}.safetensors", arguments.text_encoder
    save_weights(model.dit, dit_path)
    if name == "full":
        encoder_path = output / "umt5.safetensors"
        save_weights(model.text_encoder, encoder_path)
    if not arguments.skip_evaluation:
        dit = models.load_dit(recipe.dit(name), dit_path, device)
        text_encoder = models.load_text_encoder(recipe.text_encoder, encoder_path, device)
        evaluate_dit(recipe, stage, dit, text_encoder, vae, tokenizer, log, output / f"dit_{name}.png")
    log.write(output / f"dit_{name}.json")


def optimise(model, trained, data, stage, budget, log, seed):
    """AdamW on the velocity error until the budget is spent; leaves the averaged weights in `trained`.

    `data`: latents [N, 16, T, h, w], ids and mask [N + 1, L] whose last row is the empty prompt.
    """
    latents, ids, mask = data
    device = latents.device
    torch.manual_seed(seed)
    rate = torch.tensor(stage.learning_rate, device=device)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=stage.weight_decay,
                                  capturable=device.type == "cuda")
    ema = Ema(trained, stage.ema_decay)

    def update():
        x0, chosen = draw_batch(latents, stage)
        noise = torch.randn_like(x0)
        sigma = draw_sigmas(len(x0), stage.shift, device)
        with precision_context(stage.precision, device):
            loss = velocity_loss(model, x0, noise, sigma, ids[chosen], mask[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.detach(), "gradient_norm": norm.detach()}

    if device.type == "cuda":
        for block in model.dit.blocks:
            block.compile(dynamic=False)
    step = RecordedStep(update, device)
    while budget.progress < 1:
        rate.fill_(stage.learning_rate * budget.learning_rate_factor())
        figures = step()
        ema.update()
        budget.advance()
        log.note(figures | {"learning_rate": rate})
    ema.copy_to_module()


def draw_batch(latents, stage):
    """Random latents and the rows of their prompts, a share of them the empty prompt (the last row)."""
    device = latents.device
    chosen = torch.randint(len(latents), (stage.batch_size,), device=device)
    dropped = torch.rand(stage.batch_size, device=device) < stage.prompt_dropout
    return latents[chosen], torch.where(dropped, len(latents), chosen)


def draw_sigmas(count, shift, device):
    """Logit-normal sigmas, shifted: s * u / (1 + (s - 1) * u) with u the sigmoid of a standard normal."""
    u = torch.randn(count, device=device).sigmoid()
    return shift * u / (1 + (shift - 1) * u)


def evaluate_dit(recipe, stage, dit, text_encoder, vae, tokenizer, log, sheet_path):
    """Samples balanced prompts with the saved weights and notes how often digit and direction are right."""
    prompts = balanced_prompts(stage.evaluation_clips, EVALUATION_SEED)
    texts = [prompt.text for prompt in prompts]
    embeddings = models.embed_prompts(text_encoder, tokenizer, texts, recipe.dit_full.text_len)
    negative = models.embed_prompts(text_encoder, tokenizer, [models.NEGATIVE_PROMPT], recipe.dit_full.text_len)
    device = embeddings.device
    noise = torch.from_numpy(np.stack([noise_of(EVALUATION_SEED, i) for i in range(len(prompts))])).to(device)
    began = time.perf_counter()
    latents = models.sample_latents(dit, embeddings, negative, noise, recipe.sampling)
    clips = models.decode_clips(vae, latents)
    seconds = time.perf_counter() - began
    digit_right, direction_right = score(judge_all(clips), prompts)
    log.result(samples=len(prompts), seconds_sampling=round(seconds, 1),
               sample_latent_std=round(latents.std().item(), 4),
               digit_accuracy=accuracy(digit_right), direction_accuracy=accuracy(direction_right))
    shown = min(20, len(prompts))
    write_sheet(sheet_path, clips[:shown], texts[:shown])
