"""Steps that reuse what the blocks added in an earlier one: the measured magnitudes, and the cached velocity."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ospnext_ms.config.reader import read_section
from ospnext_ms.diffusion.step_reuse import reused_steps
from ospnext_ms.generation.identity import adapters_of
from ospnext_ms.storage import fingerprint, strict_json
from ospnext_ms.storage.files import atomic_path, current_folder


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Magnitudes measured with one network and one schedule: |residual of step i| / |residual of step i - 1|, the mean
    over tokens, branches of guidance and videos; 1 for step 0. `transformer` is a hash of its checkpoint and settings,
    `adapters` those of each adapter with its strength (identity.adapters_of), None without."""

    sampler: str
    steps: int
    shift: float
    guidance: float
    transformer: str
    adapters: str | None
    ratios: tuple[float, ...]


def calibration_of(config, ratios):
    """The Calibration of a GenerateConfig with the ratios measured."""
    sampling, dit = config.sampling, asdict(config.model.dit)
    transformer = [fingerprint.of_checkpoint(dit.pop("checkpoint")), dit]
    return Calibration(sampler=sampling.sampler, steps=sampling.steps, shift=sampling.shift, guidance=sampling.guidance,
                       transformer=fingerprint.of_values(transformer)[:16], adapters=adapters_of(config),
                       ratios=tuple(ratios))


def write_calibration(path, calibration):
    """Writes a calibration as JSON, atomically."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(json.dumps(asdict(calibration), indent=1) + "\n")


def reused_steps_of(config):
    """For each step of a GenerateConfig, whether it reuses a residual; None where `sampling.cache` is off.

    Raises:
        FileNotFoundError: no calibration there. ValueError: it is none, or was made for another network or schedule.
    """
    cache = config.sampling.cache
    if cache is None:
        return None
    path = Path(cache.calibration)
    if not path.is_file():
        raise FileNotFoundError(f"sampling.cache.calibration: no file {path} {current_folder()}; "
                                "calibrate-cache writes it")
    try:
        there = read_section(Calibration, strict_json.parse(path.read_text(encoding="utf-8")))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"sampling.cache.calibration: {path} is not what calibrate-cache writes: {error}; "
                         "run it again") from error
    wanted = asdict(calibration_of(config, there.ratios))
    differing = [f"{key} {value!r} (this run's is {wanted[key]!r})" for key, value in asdict(there).items()
                 if value != wanted[key]]
    if differing or len(there.ratios) != there.steps:
        raise ValueError(f"sampling.cache.calibration: {path} was made for " + (
            ", ".join(differing) or f"{there.steps} steps but has {len(there.ratios)} ratios")
            + "; run calibrate-cache again")
    return reused_steps(there.ratios, cache.threshold, cache.max_reused, cache.first_share)


class _VelocityOfBatch:
    """The velocity of one batch from its first step to its last; calls come step by step, branch by branch.

    Args:
        branches: calls a step, 2 with guidance.
    """

    def __init__(self, branches):
        self._branches, self._calls = branches, 0

    def __call__(self, x, t_B, text):
        step, branch = divmod(self._calls, self._branches)
        self._calls += 1
        return self._of(step, branch, x, t_B, text)


class CachedVelocity(_VelocityOfBatch):
    """Velocities, of some steps with the residual of an earlier one.

    Args:
        computed, reused: callables of models.dit_steps's Cells. reused_steps: see reused_steps_of.
    """

    def __init__(self, computed, reused, reused_steps, branches):
        super().__init__(branches)
        self._computed, self._reused, self._reused_steps = computed, reused, reused_steps
        self._residuals = {}

    def _of(self, step, branch, x, t_B, text):
        if self._reused_steps[step]:
            return self._reused(x, t_B, text, self._residuals[branch])
        velocity, self._residuals[branch] = self._computed(x, t_B, text)
        return velocity


class MeasuredVelocity(_VelocityOfBatch):
    """Velocities, all computed; to `ratios`, lists, one a step, those of the residuals' magnitudes are added."""

    def __init__(self, computed, branches, ratios):
        super().__init__(branches)
        self._computed, self._ratios = computed, ratios
        self._norms = {}

    def _of(self, step, branch, x, t_B, text):
        velocity, residual = self._computed(x, t_B, text)
        norms = residual.astype("float32").square().sum(-1).sqrt().asnumpy()
        if step:
            self._ratios[step].append(float((norms / self._norms[branch]).mean()))
        self._norms[branch] = norms
        return velocity
