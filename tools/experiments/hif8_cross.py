r"""Does 8-bit training find worse weights, or is it 8-bit computing that costs? (from the repository's root, after
tools.experiments.hif8_experiment)

    python -m tools.experiments.hif8_cross --experiment output/hif8_experiment --held-out output/digits_held_out_cache

Measures the averaged weights of every run on the fixed set twice: computed in fp32 and computed in HiF8, whatever they
were trained in. The table goes to cross.json in the experiment's folder.
"""

import argparse
import json
import re
from pathlib import Path

import mindspore as ms

from ospnext_ms.build import assemble_dit
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.kernels.assign import assign_values
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.runtime import start
from ospnext_ms.storage.open_weights import read_headers
from ospnext_ms.training.fixed_set import FixedSet
from ospnext_ms.training.loss import VelocityLoss
from tools.experiments.hif8_experiment import CONFIGS, RECIPES

COMPUTED = ("fp32", "hif8")


def weights_of(experiment):
    """{run: file} of the experiment's averaged weights, without the ablation. FileNotFoundError where there is none."""
    found = {path.stem: path for path in sorted((experiment / "weights").glob("*.safetensors"))
             if re.fullmatch(r"(fp32|hif8)_\d+", path.stem)}
    if not found:
        raise FileNotFoundError(f"no fp32_SEED.safetensors or hif8_SEED.safetensors in {experiment / 'weights'}")
    return found


def measure(config, files):
    """{run: loss on the fixed set} of checkpoints of a TrainConfig's network, compiled once for all of them."""
    runtime = start(config.context)
    dit = config.model.dit
    net = assemble_dit(dit, runtime, param_dtype=ms.float32, residual_dtype=dit.residual_dtype, training=True).net
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    fixed = FixedSet(config.eval_dataset, config.flow, config.model.dit, Mesh.single())
    loss = runtime.compile(VelocityLoss(net))
    losses = {}
    for run, file in files.items():
        stored = read_headers(file)
        for name, parameter in parameters.items():
            assign_values(parameter, stored[name].numpy().astype("float32"))
        losses[run] = fixed.mean_loss(loss)
    return losses


def cross(files, held_out, overrides=()):
    """{run: {"fp32": loss, "hif8": loss}}."""
    columns = {}
    for computed in COMPUTED:
        file, _ = RECIPES[computed]
        sets = [f"eval_dataset.path={held_out}", *overrides]
        columns[computed] = measure(load_config(TrainConfig, CONFIGS / file, sets), files)
    return {run: {computed: columns[computed][run] for computed in COMPUTED} for run in files}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, required=True, help="folder of tools.experiments.hif8_experiment")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of prepare-data to measure on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="change of the configuration, as of `ospnext_ms train`")
    arguments = parser.parse_args(argv)
    result = cross(weights_of(arguments.experiment), arguments.held_out, arguments.overrides)
    (arguments.experiment / "cross.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'trained':10}" + "".join(f"{'computed in ' + computed:>20}" for computed in COMPUTED))
    for run, losses in result.items():
        print(f"{run:10}" + "".join(f"{losses[computed]:20.5f}" for computed in COMPUTED))


if __name__ == "__main__":
    main()
