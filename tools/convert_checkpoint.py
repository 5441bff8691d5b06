"""Converts checkpoints of the three networks between PyTorch and MindSpore.

    python tools/convert_checkpoint.py dit  --source Wan2.1-T2V-1.3B --target checkpoints/dit
    python tools/convert_checkpoint.py umt5 --source models_t5_umt5-xxl-enc-bf16.pth --target checkpoints/umt5
    python tools/convert_checkpoint.py vae  --source checkpoints/vae --target vae.pth --direction mindspore-to-torch
    python tools/convert_checkpoint.py dit  --source checkpoints/dit --target checkpoints/dit_hif8 --quant hif8
    python tools/convert_checkpoint.py lora --source ADAPTER --target checkpoints/adapter
    python tools/convert_checkpoint.py lora --source ADAPTER --merge-into checkpoints/dit --target checkpoints/merged

The source may be a .safetensors or .pth file, shards with their index, or a model's folder, in Wan2.1's original
naming or in that of diffusers and transformers. Every name and shape is checked before the first byte is written, and
nothing incomplete ever stands under the target's name. Memory needed: below 1 GiB for a checkpoint of any size; towards
.pth the size of the largest tensor comes on top.
"""

import argparse
import json
import sys
from pathlib import Path

from ospnext_ms.commands.options import OneLineParser
from ospnext_ms.models.parameters import KINDS
from tools.conversion.convert import DIRECTIONS, convert
from tools.conversion.lora import convert_lora, merge_lora
from tools.conversion.names import NAMINGS


def build_parser():
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=(*KINDS, "lora"),
                        help="transformer, video autoencoder, text encoder, or a LoRA adapter of a transformer")
    parser.add_argument("--source", type=Path, required=True, help="file, index of shards, or folder")
    parser.add_argument("--target", type=Path, required=True,
                        help="folder (shards with an index), .safetensors or, towards PyTorch, .pth file")
    parser.add_argument("--direction", choices=DIRECTIONS, default=DIRECTIONS[0])
    parser.add_argument("--target-naming", choices=NAMINGS, default=NAMINGS[0],
                        help="names towards PyTorch: Wan2.1's, or those of diffusers and transformers")
    parser.add_argument("--config", type=Path,
                        help="config.json or a run's YAML with the sizes, instead of the source's own config.json")
    parser.add_argument("--quant", choices=("hif8",), help="store the transformer's matrices in 8 bits, for inference")
    parser.add_argument("--quant-report", type=Path, help="JSON file for the relative error of every tensor in 8 bits")
    parser.add_argument("--merge-into", type=Path, metavar="DIT",
                        help="transformer in the original names; the target is it with the adapter merged (lora only)")
    parser.add_argument("--alpha", type=_alpha, metavar="NUMBER|rank",
                        help="of an adapter whose file does not say it: B A is added alpha / rank times (lora only)")
    parser.add_argument("--key", help="which of several sets of weights in one file (ema, generator, ...)")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is already there")
    return parser


def _alpha(text):
    """What --alpha may be; argparse says what is wrong."""
    return text if text == "rank" else float(text)


def _convert_lora(options):
    strength = {"alpha": options.alpha, "key": options.key, "overwrite": options.overwrite}
    if options.merge_into:
        return merge_lora(options.source, options.merge_into, options.target, **strength)
    return convert_lora(options.source, options.target, options.direction, target_naming=options.target_naming,
                        **strength)


def main(arguments=None):
    """Runs the command line; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.quant_report and not options.quant:
        parser.error("--quant-report goes with --quant")
    if options.kind == "lora" and (options.config or options.quant):
        parser.error("--config and --quant do not go with lora")
    if options.alpha is not None and (options.kind != "lora" or options.alpha != "rank" and not options.alpha > 0):
        parser.error("--alpha is a number above 0 or rank, and goes with lora")
    if options.merge_into and (options.kind != "lora" or options.direction != DIRECTIONS[0]):
        parser.error("--merge-into goes with lora, and not with --direction")
    try:
        if options.kind == "lora":
            print(_convert_lora(options))
            return 0
        summary = convert(options.kind, options.source, options.target, options.direction,
                          target_naming=options.target_naming, config=options.config, overwrite=options.overwrite,
                          quant=options.quant, key=options.key, show_progress=True)
        if options.quant_report:
            options.quant_report.write_text(json.dumps(summary.hif8_errors, indent=1) + "\n")
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
