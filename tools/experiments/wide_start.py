r"""A wider full tiny model to start hif8_experiment_torch from (from the repository's root)

    python -m tools.experiments.wide_start --times 4 --minutes 1.2 --device cuda --output output/wide/dit.safetensors

Trains the full network with `--times` the width, heads and feed-forward width of tools/tiny_family/train.yaml's from
nothing, on that recipe's clips, with the family's own text encoder, which stays as it is. Prints the settings that
hif8_experiment_torch has to be given.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from tools.tiny_family import digits, models
from tools.tiny_family.loop import Budget, StageLog, save_weights
from tools.tiny_family.recipe import load_recipe
from tools.tiny_family.tokenizer import tokenize
from tools.tiny_family.train_dit import optimise
from tools.tiny_family.write_cache import WEIGHTS, encode_clips
from tools.torch_reference.dit import OSPNextDiT


def parse_arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=4, help="how many times as wide")
    parser.add_argument("--minutes", type=float, default=1.2, help="of training")
    parser.add_argument("--steps", type=int, help="of training, at most")
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--workers", type=int, default=4, help="processes that draw clips")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    return parser.parse_args(argv)


def widened(config, times):
    """A DiTConfig with `times` the width, the heads and the feed-forward width."""
    return replace(config, dim=times * config.dim, ffn_dim=times * config.ffn_dim, num_heads=times * config.num_heads)


def main(argv=None):
    arguments = parse_arguments(argv)
    device, recipe = torch.device(arguments.device), load_recipe()
    stage = replace(recipe.full, minutes=arguments.minutes, max_steps=arguments.steps, num_clips=arguments.clips,
                    batch_size=arguments.batch_size, learning_rate=arguments.learning_rate)
    clips, captions, _ = digits.make_clips(recipe.seed, 0, stage.num_clips, workers=arguments.workers)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer", local_files_only=True)
    ids, mask = tokenize(tokenizer, [*captions, models.NEGATIVE_PROMPT], recipe.dit_full.text_len)
    data = encode_clips(clips, device), torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
    config = widened(recipe.dit_full, arguments.times)
    torch.manual_seed(recipe.seed)
    encoder = models.load_text_encoder(recipe.text_encoder, WEIGHTS / "umt5.safetensors", device)
    model = models.TextToVelocity(encoder, OSPNextDiT(config)).to(device)
    budget = Budget(stage.minutes, stage.max_steps)
    optimise(model, model.dit, data, stage, budget, StageLog(budget), recipe.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_weights(model.dit, arguments.output)
    print(f"--set load_checkpoint={arguments.output} --set model.dit.dim={config.dim} "
          f"--set model.dit.ffn_dim={config.ffn_dim} --set model.dit.num_heads={config.num_heads}")


if __name__ == "__main__":
    main()
