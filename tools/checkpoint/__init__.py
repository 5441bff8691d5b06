"""Parts of the checkpoint converter; no MindSpore anywhere, PyTorch only in torch_file.py."""
