"""This package under the names, and with the signatures, by which users of mindformers look for it.

    from ospnext_ms.training.mindformers import register
    register()
    trainer = build_trainer({"type": "OSPNextTrainer"})
    trainer.train(config="yaml_configs/train/tiny.yaml")          # or MindFormerConfig(**sections)

docs/train.md says what is shared with mindformers and what is not.
"""

import os

from ospnext_ms.config.reader import ConfigError, load_config, read_section
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.training.optimizer import load_mindformers


def register():
    """Puts OSPNextTrainer, OSPNextTrainConfig, OSPNextDiT and OSPNextDiTConfig into MindFormerRegister. Safe to repeat.

    OSPNextDiT is built from an OSPNextDiTConfig, the trainer with no arguments or a model name.
    """
    load_mindformers()
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    from ospnext_ms.models.dit import OSPNextDiT

    for kind, name, cls in ((MindFormerModuleType.TRAINER, "OSPNextTrainer", OSPNextTrainer),
                            (MindFormerModuleType.CONFIG, "OSPNextTrainConfig", TrainConfig),
                            (MindFormerModuleType.MODELS, "OSPNextDiT", OSPNextDiT),
                            (MindFormerModuleType.CONFIG, "OSPNextDiTConfig", DiTConfig)):
        if not MindFormerRegister.is_exist(kind, name):
            MindFormerRegister.register_cls(cls, module_type=kind, alias=name)


class OSPNextTrainer:
    """`ospnext_ms train` with the signature of a mindformers task trainer.

    Args:
        model_name: for logs, as in mindformers.
    """

    def __init__(self, model_name=None):
        self.model_name = model_name or "ospnext"

    def train(self, config=None, network=None, dataset=None, wrapper=None, optimizer=None, callbacks=None, **others):
        """Trains what a configuration says; returns the paths of what there is to look at.

        Args:
            config: path of a YAML file, a MindFormerConfig or another mapping of its sections, or a TrainConfig.
            network, dataset, wrapper, optimizer, callbacks, others: mindformers' other arguments. Here the
                configuration says all of it, so they have to be left out.

        Raises:
            ValueError: another argument is given, or a configuration that cannot be run (see commands/train).
            FileNotFoundError, FloatingPointError: see training.run.
        """
        from ospnext_ms.training.run import train

        given = {"network": network, "dataset": dataset, "wrapper": wrapper, "optimizer": optimizer,
                 "callbacks": callbacks, **others}
        refused = [name for name, value in given.items() if value is not None]
        if refused:
            raise ValueError(f"OSPNextTrainer.train takes config alone, not {', '.join(refused)}: network, data, "
                             "optimiser and callbacks are sections of the configuration")
        return train(_resolve(config))


def _resolve(config):
    """TrainConfig of whatever a user of mindformers has."""
    if isinstance(config, TrainConfig):
        return config
    if isinstance(config, str | os.PathLike):
        return load_config(TrainConfig, config)
    if not isinstance(config, dict):
        raise ConfigError(f"config is {config!r}; expected a YAML file, a MindFormerConfig or a TrainConfig")
    return read_section(TrainConfig, _plain(config))


def _plain(value):
    """Mappings of any class as dict, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, list | tuple) else value
