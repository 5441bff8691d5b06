"""The only package that asks which device runs: one function per contract, a CPU and an Ascend implementation."""
