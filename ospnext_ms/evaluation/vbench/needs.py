"""What upstream's package (vbench 0.1.5) fetches when it first scores a dimension, and where it keeps it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HUGGING_FACE = "https://huggingface.co/"


@dataclass(frozen=True)
class Need:
    """A file (or folder) of weights: where upstream looks for it, and where it fetches it from."""

    path: str
    source: str

    def place(self, environment: Mapping[str, str]) -> Path:
        """The path with upstream's caches as `environment` moves them."""
        home = Path(environment.get("HOME") or Path.home())
        cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
        folders = {
            "vbench": Path(environment.get("VBENCH_CACHE_DIR") or home / ".cache" / "vbench"),
            "clip": home / ".cache" / "clip",
            "torch": Path(environment.get("TORCH_HOME") or cache / "torch"),
            "huggingface": Path(environment.get("HF_HOME") or cache / "huggingface"),
        }
        first, _, rest = self.path.partition("/")
        return folders[first] / rest


_CLIP_B = Need("clip/ViT-B-32.pt", "https://openaipublic.azureedge.net/clip/models (ViT-B/32)")
_CLIP_L = Need("clip/ViT-L-14.pt", "https://openaipublic.azureedge.net/clip/models (ViT-L/14)")
_BERT = Need("huggingface/hub/models--bert-base-uncased", f"{_HUGGING_FACE}bert-base-uncased")
_GRIT = (Need("vbench/grit_model/grit_b_densecap_objectdet.pth",
              "https://datarelease.blob.core.windows.net/grit/models/grit_b_densecap_objectdet.pth"), _BERT)
_VICLIP = (Need("vbench/ViCLIP/ViClip-InternVid-10M-FLT.pth", f"{_HUGGING_FACE}OpenGVLab/VBench_Used_Models"),
           Need("vbench/ViCLIP/bpe_simple_vocab_16e6.txt.gz", "https://raw.githubusercontent.com/openai/CLIP"))

NEEDS: dict[str, tuple[Need, ...]] = {
    "subject_consistency": (
        Need("torch/hub/facebookresearch_dino_main", "https://github.com/facebookresearch/dino"),
        Need("torch/hub/checkpoints/dino_vitbase16_pretrain.pth", "https://dl.fbaipublicfiles.com/dino")),
    "background_consistency": (_CLIP_B,),
    "temporal_flickering": (),
    "motion_smoothness": (Need("vbench/amt_model/amt-s.pth", f"{_HUGGING_FACE}lalala125/AMT"),),
    "dynamic_degree": (Need("vbench/raft_model/models/raft-things.pth",
                            "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip"),),
    "aesthetic_quality": (_CLIP_L, Need("vbench/aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
                                        "https://github.com/LAION-AI/aesthetic-predictor")),
    "imaging_quality": (Need("vbench/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
                             "https://github.com/chaofengc/IQA-PyTorch/releases"),),
    "object_class": _GRIT,
    "multiple_objects": _GRIT,
    "human_action": (Need("vbench/umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
                          f"{_HUGGING_FACE}OpenGVLab/VBench_Used_Models"),),
    "color": _GRIT,
    "spatial_relationship": _GRIT,
    "scene": (Need("vbench/caption_model/tag2text_swin_14m.pth",
                   f"{_HUGGING_FACE}spaces/xinyu1205/recognize-anything"), _BERT),
    "appearance_style": (_CLIP_B,),
    "temporal_style": _VICLIP,
    "overall_consistency": _VICLIP,
}
# Their detector is built on it.
NEED_DETECTRON2 = frozenset({"object_class", "multiple_objects", "color", "spatial_relationship"})


def missing_needs(dimension: str, environment: Mapping[str, str], has_detectron2: bool) -> list[str]:
    """A line for everything that a dimension needs and is not there."""
    lines = [f"{need.place(environment)} (would be fetched from {need.source})" for need in NEEDS[dimension]
             if not need.place(environment).exists()]
    if dimension in NEED_DETECTRON2 and not has_detectron2:
        lines.append("the Python package detectron2 (built from its repository, facebookresearch/detectron2)")
    return lines


def environment() -> Mapping[str, str]:
    """The process's environment, which upstream's process inherits."""
    return os.environ
