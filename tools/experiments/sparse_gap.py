r"""How much of what sparse attention loses does fine-tuning regain? (from the repository's root)

    python -m tools.experiments.sparse_gap --config yaml_configs/train/tiny.yaml \
        --trained output/train_tiny/checkpoints/step_00000400/ema

Measures the loss on the fixed set of the configuration's eval_dataset of three networks: the full one with the weights
that training started from (load_checkpoint), the sparse one with the same weights, and the sparse one with the trained
weights. Regained is (sparse before - sparse after) / (sparse before - full).
"""

import argparse
import dataclasses
import json
from pathlib import Path

import mindspore as ms

from ospnext_ms.build import assemble_dit
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.runtime import start
from ospnext_ms.storage.open_weights import open_weights, read_headers
from ospnext_ms.training.fixed_set import FixedSet
from ospnext_ms.training.loss import VelocityLoss


def measure(config, runtime, section, weights):
    """Loss on the fixed set of a TrainConfig of the network `section` with a checkpoint."""
    net = assemble_dit(section, runtime, tensors=open_weights(weights), origin=weights, param_dtype=ms.float32,
                       residual_dtype=section.residual_dtype, training=True).net
    fixed = FixedSet(config.eval_dataset, config.flow, section, Mesh.single())
    return fixed.mean_loss(runtime.compile(VelocityLoss(net)))


def gap(config, trained):
    """{"full", "sparse_before", "sparse_after", "regained"} of a TrainConfig and a checkpoint.

    Raises:
        ValueError: the configuration has no eval_dataset, no load_checkpoint or no sparse blocks.
    """
    if config.eval_dataset is None or config.load_checkpoint is None or config.model.dit.skiparse == "full":
        raise ValueError("the configuration needs an eval_dataset, a load_checkpoint and a sparse layout")
    # Before minutes are spent on the others.
    read_headers(trained)
    runtime = start(config.context)
    sparse = config.model.dit
    full = dataclasses.replace(sparse, skiparse="full", num_full_blocks=None)
    losses = {
        "full": measure(config, runtime, full, config.load_checkpoint),
        "sparse_before": measure(config, runtime, sparse, config.load_checkpoint),
        "sparse_after": measure(config, runtime, sparse, trained),
    }
    lost = losses["sparse_before"] - losses["full"]
    return losses | {"regained": (losses["sparse_before"] - losses["sparse_after"]) / lost}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--trained", required=True, help="checkpoint, or a group of a training checkpoint")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    arguments = parser.parse_args(argv)
    result = gap(load_config(TrainConfig, arguments.config, arguments.overrides), arguments.trained)
    print("  ".join(f"{name} {value:.5f}" for name, value in result.items()))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
