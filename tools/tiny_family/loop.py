"""What every training stage shares: a time budget with its learning rate, averaged weights and a log."""

import contextlib
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

WARM_UP_SHARE = 0.03
LAST_LEARNING_RATE = 0.02
FP16_MAX = 65504.0


class Budget:
    """How much of the time (and of the steps, where these are limited too) is spent. The clock starts with the first
    finished step, so that building and compiling do not count."""

    def __init__(self, minutes, max_steps=None):
        self.seconds = 60 * minutes
        self.max_steps = max_steps
        self.step = 0
        self.started = None

    def advance(self):
        """Notes one finished step."""
        self.step += 1
        if self.started is None:
            self.started = time.perf_counter()

    @property
    def elapsed(self):
        """Seconds since the first step was finished."""
        return 0.0 if self.started is None else time.perf_counter() - self.started

    @property
    def progress(self):
        """From 0 (nothing is spent) to 1 (stop)."""
        spent = self.elapsed / self.seconds
        if self.max_steps:
            spent = max(spent, self.step / self.max_steps)
        return min(spent, 1.0)

    def learning_rate_factor(self):
        """Linear warm-up, then half a cosine down to 2 %."""
        if self.progress < WARM_UP_SHARE:
            return max(self.progress / WARM_UP_SHARE, 1e-3)
        position = (self.progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)
        return LAST_LEARNING_RATE + (1 - LAST_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * position))


class Ema:
    """Exponential moving average of a module's parameters; in the first steps the average is shorter."""

    def __init__(self, module, decay):
        self.module = module
        self.decay = decay
        self.step = 0
        self.average = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self):
        """Takes the module's weights into the average."""
        self.step += 1
        weight = 1 - min(self.decay, self.step / (self.step + 10))
        torch._foreach_lerp_(self.average, list(self.module.parameters()), weight)

    @torch.no_grad()
    def copy_to_module(self):
        """Puts the average in the place of the trained weights."""
        for parameter, average in zip(self.module.parameters(), self.average, strict=True):
            parameter.copy_(average)


class StageLog:
    """Prints a line every few seconds and collects what becomes the stage's JSON log."""

    def __init__(self, budget, every_seconds=3.0):
        self.budget = budget
        self.every_seconds = every_seconds
        self.records = []
        self.results = {}
        self._last = -math.inf

    def note(self, values):
        """`values` is {name: tensor of one number}; they are only fetched when a line is due."""
        now = time.perf_counter()
        if now - self._last < self.every_seconds and self.budget.progress < 1:
            return
        self._last = now
        values = {name: value.item() for name, value in values.items()}
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(f"training left the finite numbers at step {self.budget.step}: {values}")
        record = {"step": self.budget.step, "seconds": round(self.budget.elapsed, 1), **values}
        self.records.append(record)
        print("  ".join(f"{name} {value:.5g}" for name, value in record.items()), flush=True)

    def result(self, **values):
        """Notes and prints a figure of the finished stage."""
        self.results.update(values)
        print("  ".join(f"{name}: {value}" for name, value in values.items()), flush=True)

    def write(self, path):
        """The log as JSON: {"results": {...}, "records": [{"step", "seconds", ...}]}."""
        Path(path).write_text(json.dumps({"results": self.results, "records": self.records}, indent=1) + "\n")


def precision_context(precision, device):
    """Autocast for bf16, nothing otherwise; switches TF32 for matrix products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    if precision == "bf16":
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def save_weights(module, path):
    """Writes a module's parameters as fp16 safetensors. Raises ValueError where a weight does not fit fp16."""
    state = {}
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all() or tensor.abs().max() > FP16_MAX:
            raise ValueError(f"{name} is not finite or too large for fp16 (largest {tensor.abs().max().item():.4g})")
        state[name] = tensor.detach().to("cpu", torch.float16).contiguous()
    save_file(state, str(path))
