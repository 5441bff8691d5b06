"""Videos that are made while a run goes on, to be looked at: what can be told about them."""

from dataclasses import dataclass

from ospnext_ms.config.checks import require, require_at_least, require_seed
from ospnext_ms.config.sections import GuidedStepsSection, VideoSection


@dataclass(frozen=True, kw_only=True)
class WatchedPromptsSection:
    """A video of each prompt, with the averaged weights and the same noise every time: before, every `every` steps (or
    iterations; null: not between) and at the end.

    `prompts` is a list of them, or the name of a UTF-8 file with one a line. `seed` draws the noise as `generate` does.
    """

    prompts: tuple[str, ...] | str
    every: int | None = None
    seed: int = 0

    def __post_init__(self):
        require(self.prompts,
                "prompts has an empty entry, or none; it must be a list of texts, or the name of a prompt file")
        require_at_least(self, 1, "every")
        require_seed(self, "seed")


@dataclass(frozen=True, kw_only=True)
class ValidationSection(WatchedPromptsSection, GuidedStepsSection):
    """As WatchedPromptsSection, and how a latent is made (Euler steps) and of what size the videos are."""

    video: VideoSection

    def __post_init__(self):
        WatchedPromptsSection.__post_init__(self)
        GuidedStepsSection.__post_init__(self)
