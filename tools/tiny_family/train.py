"""Trains the tiny family, one stage a call (from the repository's root, on a GPU):

    python -m tools.tiny_family.train --stage vae --output DIR
    python -m tools.tiny_family.train --stage full --output DIR --vae DIR/vae.safetensors
    python -m tools.tiny_family.train --stage sparse --output DIR --vae DIR/vae.safetensors \\
        --text-encoder DIR/umt5.safetensors --init DIR/dit_full.safetensors

`vae` writes vae.safetensors; `full` writes dit_full.safetensors and umt5.safetensors; `sparse` fine-tunes the full
model into dit_sparse.safetensors. Weights are fp16. Every stage also writes a JSON log and a contact sheet.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from tools.tiny_family.recipe import FOLDER, STAGES, load_recipe
from tools.tiny_family.train_dit import train_dit
from tools.tiny_family.train_vae import train_vae

REQUIRED_INPUTS = {"vae": (), "full": ("vae",), "sparse": ("vae", "text_encoder", "init")}


def parse_arguments(argv=None):
    """The command line; a stage that lacks one of its inputs is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=FOLDER / "train.yaml")
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, log and contact sheet")
    parser.add_argument("--vae", type=Path, help="weights of the stage vae")
    parser.add_argument("--text-encoder", type=Path, help="umt5.safetensors of the stage full")
    parser.add_argument("--init", type=Path, help="dit_full.safetensors of the stage full")
    parser.add_argument("--tokenizer", type=Path, default=FOLDER / "weights" / "tokenizer")
    parser.add_argument("--minutes", type=float, help="training time, instead of the recipe's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=16, help="processes that draw clips")
    parser.add_argument("--skip-evaluation", action="store_true", help="write the weights and judge nothing")
    parser.add_argument("--latent-cache", type=Path,
                        help="file that keeps the encoded clips from one stage to the next")
    arguments = parser.parse_args(argv)
    for name in REQUIRED_INPUTS[arguments.stage]:
        path = getattr(arguments, name)
        if path is None or not path.is_file():
            parser.error(f"stage {arguments.stage} needs --{name.replace('_', '-')}; got {path}")
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    recipe = load_recipe(arguments.config)
    if arguments.minutes is not None:
        stage = dataclasses.replace(getattr(recipe, arguments.stage), minutes=arguments.minutes)
        recipe = dataclasses.replace(recipe, **{arguments.stage: stage})
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    if arguments.stage == "vae":
        train_vae(recipe, arguments)
    else:
        train_dit(recipe, arguments)


if __name__ == "__main__":
    main()
