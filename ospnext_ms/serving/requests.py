"""What a client asks for, checked by the types of the configuration. No framework."""

import dataclasses
import secrets
from dataclasses import dataclass

from ospnext_ms.config.checks import MAX_SEED, FreeText, require, require_at_least
from ospnext_ms.config.generate import AdapterSection, GenerateConfig, PromptsSection
from ospnext_ms.config.reader import read_section
from ospnext_ms.config.serve import ServeConfig
from ospnext_ms.generation.jobs import Job, negative_of
from ospnext_ms.models.sizes import TEMPORAL_COMPRESSION

MODEL = "ospnext"


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A request's keys; what is null is taken from the server's configuration.

    `seconds` and `frames` both say how long, `size` is WIDTHxHEIGHT; `model` is not looked at, there is one. `seed` -1
    draws one.
    """

    prompt: FreeText
    negative_prompt: FreeText | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    size: str | None = None
    seconds: float | None = None
    frames: int | None = None
    adapter: FreeText | None = None
    model: FreeText | None = None

    def __post_init__(self):
        require(self.prompt.strip(), "prompt is empty")
        require(self.seconds is None or self.frames is None, "give seconds or frames, not both")
        require(self.seconds is None or self.seconds > 0, f"seconds is {self.seconds}; it must be above 0")
        require_at_least(self, 1, "steps", "frames")
        require(self.seed is None or -1 <= self.seed <= MAX_SEED,
                f"seed is {self.seed}; it must be from -1 (drawn) to {MAX_SEED}")


def read_request(mapping: object, config: ServeConfig) -> dict:
    """The settings of one video, as JSON values, of what a client sent; each of them is given a value.

    Raises:
        ValueError: a key or a value that cannot be; in one line.
    """
    try:
        request = read_section(VideoRequest, mapping)
        settings = _settings(request, config)
        config_of(settings, config)
    except ValueError as error:
        raise ValueError("; ".join(str(error).splitlines())) from error
    return settings


def _settings(request: VideoRequest, config: ServeConfig) -> dict:
    limits, sampling, video = config.serve, config.sampling, config.video
    for name in ("prompt", "negative_prompt"):
        text = getattr(request, name) or ""
        require("\0" not in text and text == text.encode(errors="replace").decode(),
                f"{name} holds characters that are none")
        require(len(text) <= limits.prompt_characters,
                f"{name} has {len(text)} characters; at most {limits.prompt_characters} are taken")
    steps = _or(request.steps, sampling.steps)
    require(steps <= limits.max_steps, f"steps is {steps}; it must be at most {limits.max_steps}")
    frames = _or(request.frames, video.frames)
    if request.seconds is not None:
        frames = 1 + TEMPORAL_COMPRESSION * round(min(request.seconds * video.fps, 1e6) / TEMPORAL_COMPRESSION)
    require(frames <= config.max_frames, f"frames is {frames} ({frames / video.fps:.3g} seconds); it must be at most "
            f"{config.max_frames} ({config.max_frames / video.fps:.3g} seconds)")
    sizes = [f"{width}x{height}" for width, height in config.sizes]
    size = _or(request.size, sizes[0])
    require(size in sizes, f"size is {size[:20]!r}; it must be one of {', '.join(sizes)}")
    names = [adapter.name for adapter in limits.adapters]
    adapter = request.adapter or None
    require(adapter is None or adapter in names,
            f"adapter is {(adapter or '')[:40]!r}; " + (f"it must be one of {', '.join(names)}" if names else
                                                        "this server has none"))
    seed = _or(request.seed, sampling.seed)
    return {"prompt": request.prompt, "negative_prompt": _or(request.negative_prompt, sampling.negative_prompt),
            "seed": secrets.randbelow(MAX_SEED + 1) if seed == -1 else seed, "steps": steps,
            "guidance": _or(request.guidance, sampling.guidance), "size": size, "frames": frames, "fps": video.fps,
            "adapter": adapter}


def config_of(settings: dict, config: ServeConfig) -> GenerateConfig:
    """The GenerateConfig that makes the video of a request's settings; ValueError where there is none."""
    width, height = map(int, settings["size"].split("x"))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(GenerateConfig)}
    values |= {
        "sampling": dataclasses.replace(config.sampling, steps=settings["steps"], guidance=settings["guidance"],
                                        seed=settings["seed"], negative_prompt=settings["negative_prompt"]),
        "video": dataclasses.replace(config.video, width=width, height=height, frames=settings["frames"]),
        "prompts": PromptsSection(prompt=settings["prompt"]),
    }
    if settings["adapter"] is not None:
        chosen = [adapter for adapter in config.serve.adapters if adapter.name == settings["adapter"]]
        # Of a job that an earlier server took, with another configuration.
        require(chosen, f"the adapter {settings['adapter']!r} is no longer served")
        values |= {"adapter": None, "adapters": (AdapterSection(path=chosen[0].path, strength=chosen[0].strength),)}
    return GenerateConfig(**values)


def job_of(settings: dict, config: GenerateConfig, name: str) -> Job:
    """The generation.jobs.Job of a request's settings and its configuration."""
    return Job(settings["prompt"], name, settings["seed"], 0, negative_of(config.sampling))


def _or(value, default):
    return default if value is None else value
