"""The reference networks in fast form on NVIDIA GPUs: packed order, kernels, 8 bits, several GPUs, parity, speed."""
