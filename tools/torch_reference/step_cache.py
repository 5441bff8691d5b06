"""The step cache of ospnext_ms.diffusion.step_reuse around the reference network."""

import torch


class CachedDiT:
    """Called as the network, step by step from the first to the last and again; both branches of guidance in one call.

    Args:
        dit: has forward_with_added and project, as dit.OSPNextDiT and gpu.packed.PackedDiT have.
        reused_steps: for each step, whether it reuses what the blocks added before; None computes every step and keeps
            the ratios of the residuals' magnitudes in `ratios` [steps - 1], one list a step.
        num_steps: of the schedule, where `reused_steps` is None.
    """

    def __init__(self, dit, reused_steps=None, num_steps=None):
        self._dit = dit
        self._measures = reused_steps is None
        self._reused_steps = [False] * num_steps if reused_steps is None else reused_steps
        self._calls = 0
        self._residual = None
        self.ratios = [[] for _ in self._reused_steps]

    def __call__(self, x, t_B, text):
        step = self._calls % len(self._reused_steps)
        self._calls += 1
        if self._reused_steps[step]:
            return self._dit.project(x, t_B, self._residual)
        before = self._residual
        velocity, residual = self._dit.forward_with_added(x, t_B, text)
        if self._measures and step:
            self.ratios[step].append((_norm(residual) / _norm(before)).mean().item())
        self._residual = residual
        return velocity


def _norm(x):
    return torch.linalg.vector_norm(x.float(), dim=-1)
