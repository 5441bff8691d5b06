"""What several processes that train together do, each with what it saw as its result."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ospnext_ms.config.reader import load_config
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.parallel.mesh import make_mesh
from ospnext_ms.runtime import start
from ospnext_ms.training.loop import Trainer
from tests.support.shards import whole


def save(config, runtime, mesh):
    """Trains to the configured step and leaves checkpoints."""
    Trainer(config, runtime, mesh).run()
    return {}


def resume(config, runtime, mesh):
    """Compares what was restored with the checkpoint's whole tensors, then trains on."""
    trainer = Trainer(config, runtime, mesh)
    stored = trainer.store.newest().groups
    wrong = []
    for group, parameters in trainer.learner.state.groups.items():
        for name, parameter in parameters.items():
            if not np.array_equal(whole(trainer.sharded, name, parameter), stored[group][name].numpy()):
                wrong.append(f"{group}/{name}")
    steps_done = trainer.steps_done
    trainer.run()
    return {"steps_done": steps_done, "compared": sum(map(len, trainer.learner.state.groups.values())), "wrong": wrong}


def not_a_number(config, runtime, mesh):
    """The data of rank 1 are damaged in step 2."""
    trainer = Trainer(config, runtime, mesh)
    good = trainer.source.batch

    def batch(step):
        found = good(step)
        return replace(found, latents=found.latents * np.nan) if mesh.rank == 1 and step == 1 else found

    trainer.source.batch = batch
    try:
        trainer.run()
    except FloatingPointError as error:
        return {"message": str(error), "steps_done": trainer.steps_done}
    return {"message": "trained to the end"}


def disagree(config, runtime, mesh):
    """Rank 1 was started with another seed and learning rate."""
    if mesh.rank == 1:
        rates = replace(config.lr_schedule, learning_rate=2e-3)
        config = replace(config, seed=config.seed + 1, lr_schedule=rates)
    try:
        Trainer(config, runtime, mesh)
    except ValueError as error:
        return {"message": str(error)}
    return {"message": "trains along"}


def train(folder, name):
    """Runs one of cases.TRAINING with FOLDER/NAME.yaml on all processes together."""
    config = load_config(TrainConfig, Path(folder) / f"{name}.yaml")
    runtime = start(config.context)
    scenarios = {"save": save, "resume": resume, "resume compiled": resume,
                 "adapters ssp": save, "adapters data": save, "nan": not_a_number, "disagree": disagree}
    return scenarios[name](config, runtime, make_mesh(config.parallel_config))
