"""train.yaml as typed values; an unknown or missing key is an error."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import yaml

from ospnext_ms.models.config import DiTConfig, UMT5Config, VAEConfig

STAGES = ("vae", "full", "sparse")
PRECISIONS = ("tf32", "bf16", "fp32")
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Phase:
    """Until which share of the time budget clips are cut to `crop` pixels and `frames` frames."""

    until: float
    crop: int
    frames: int
    batch_size: int


@dataclass(frozen=True)
class VAEStage:
    """Training of the autoencoder."""

    minutes: float
    max_steps: int | None
    num_clips: int
    learning_rate: float
    kl_weight: float
    edge_weight: float
    ema_decay: float
    precision: str
    phases: tuple
    normalise_clips: int
    evaluation_clips: int

    def __post_init__(self):
        phases = (phase if isinstance(phase, Phase) else Phase(**phase) for phase in self.phases)
        object.__setattr__(self, "phases", tuple(phases))


@dataclass(frozen=True)
class DiTStage:
    """Training of a diffusion transformer on latents."""

    minutes: float
    max_steps: int | None
    num_clips: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    prompt_dropout: float
    shift: float
    ema_decay: float
    precision: str
    evaluation_clips: int


@dataclass(frozen=True)
class Sampling:
    """How videos are made after training."""

    num_steps: int
    shift: float
    guidance: float


@dataclass(frozen=True)
class Recipe:
    """The whole of train.yaml; `dit_full` is `dit_sparse` with every block full."""

    seed: int
    vae_model: VAEConfig
    text_encoder: UMT5Config
    dit_sparse: DiTConfig
    dit_full: DiTConfig
    vae: VAEStage
    full: DiTStage
    sparse: DiTStage
    sampling: Sampling

    def dit(self, model):
        """Configuration of the model called "full" or "sparse"."""
        return {"full": self.dit_full, "sparse": self.dit_sparse}[model]


def load_recipe(path=FOLDER / "train.yaml"):
    """Reads a recipe. Raises FileNotFoundError, or ValueError that names the key that is wrong."""
    values = yaml.safe_load(Path(path).read_text())
    _require_keys(path, values, ("seed", "models", *STAGES, "sampling"))
    _require_keys(path, values["models"], ("vae", "text_encoder", "dit"))
    models = values["models"]
    dit_sparse = _build(path, "models.dit", DiTConfig, models["dit"])
    recipe = Recipe(
        seed=values["seed"],
        vae_model=_build(path, "models.vae", VAEConfig, models["vae"]),
        text_encoder=_build(path, "models.text_encoder", UMT5Config, models["text_encoder"]),
        dit_sparse=dit_sparse,
        dit_full=dataclasses.replace(dit_sparse, skiparse="full", num_full_blocks=None),
        vae=_build(path, "vae", VAEStage, values["vae"]),
        full=_build(path, "full", DiTStage, values["full"]),
        sparse=_build(path, "sparse", DiTStage, values["sparse"]),
        sampling=_build(path, "sampling", Sampling, values["sampling"]),
    )
    for stage in (recipe.vae, recipe.full, recipe.sparse):
        if stage.precision not in PRECISIONS:
            raise ValueError(f"{path}: precision is {stage.precision!r}; valid: {', '.join(PRECISIONS)}")
    return recipe


def _require_keys(path, values, names):
    if set(values) != set(names):
        raise ValueError(f"{path}: keys are {sorted(values)}; valid: {sorted(names)}")


def _build(path, section, kind, values):
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{path}: {section}: {error}") from error
