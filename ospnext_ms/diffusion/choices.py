"""What can be chosen about sampling, by name: for configurations as for code. Framework-free."""

from typing import Literal

# Samplers of the ODE, see sampler.make_sampler.
SamplerName = Literal["euler", "unipc", "dpm++"]
# Noise levels of a stochastic step, see flow.noise_std.
NoiseKind = Literal["osp", "flow_grpo"]
# How the stochastic window moves, see windows.window_start.
WindowStrategy = Literal["first", "progressive", "random"]
