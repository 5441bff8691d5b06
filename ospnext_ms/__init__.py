"""OSP-Next: sparse text-to-video diffusion on MindSpore, Ascend first."""

__version__ = "0.1.0"
