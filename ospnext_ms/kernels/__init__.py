"""What depends on the device: one function per contract, a CPU and an Ascend implementation."""
