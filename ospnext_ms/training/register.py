"""The transformer and its training under the names by which users of mindformers look for them.

    import ospnext_ms.training.register
    MindFormerRegister.get_cls(MindFormerModuleType.MODELS, "OSPNextDiT")
    MindFormerRegister.get_cls(MindFormerModuleType.TRAINER, "OSPNextTrainer")
    MindFormerRegister.get_cls(MindFormerModuleType.CONFIG, "OSPNextTrainConfig")

Importing it imports mindformers, so nothing else here does.
"""

from ospnext_ms.config.train import TrainConfig
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.training.loop import Trainer
from ospnext_ms.training.mindformers import load_mindformers

load_mindformers()

from mindformers.tools.register import MindFormerModuleType, MindFormerRegister  # noqa: E402  (now that its log folder is set)

REGISTERED = (
    (MindFormerModuleType.MODELS, "OSPNextDiT", OSPNextDiT),
    (MindFormerModuleType.TRAINER, "OSPNextTrainer", Trainer),
    (MindFormerModuleType.CONFIG, "OSPNextTrainConfig", TrainConfig),
)
for _kind, _name, _cls in REGISTERED:
    if not MindFormerRegister.is_exist(_kind, _name):
        MindFormerRegister.register_cls(_cls, module_type=_kind, alias=_name)
