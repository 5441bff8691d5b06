"""What the sections of a configuration check about their values, and the error that tells it."""

from typing import NewType

MAX_SEED = 2**32 - 1

# A text that may be empty. Every other text of a configuration (`str`) names something: what is empty there comes from
# a variable that was not set, and as a folder it would be the current one.
FreeText = NewType("FreeText", str)


class ConfigError(ValueError):
    """A configuration that cannot be run; the message has one line per problem."""


def require(condition: object, message: str) -> None:
    """Raises ValueError(message) unless the condition holds; for the checks of a section's __post_init__."""
    if not condition:
        raise ValueError(message)


def require_at_least(section: object, lowest: float, *names: str) -> None:
    """ValueError naming the first of a section's fields that is below `lowest`; None is none."""
    for name in names:
        value = getattr(section, name)
        require(value is None or value >= lowest, f"{name} is {value}; it must be at least {lowest}")


def require_above_0(section: object, *names: str) -> None:
    """ValueError naming the first of a section's fields that is not above 0; None is none."""
    for name in names:
        value = getattr(section, name)
        require(value is None or value > 0, f"{name} is {value}; it must be above 0")


def require_seed(section: object, *names: str) -> None:
    """ValueError naming the first of a section's fields that MindSpore and NumPy cannot both be seeded with."""
    for name in names:
        value = getattr(section, name)
        require(0 <= value <= MAX_SEED, f"{name} is {value}; it must be from 0 to {MAX_SEED}")
