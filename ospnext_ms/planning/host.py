"""Memory of the host while weights are loaded, before they go to a device, in bytes. What MindSpore itself takes (about
0.5 GB a process) and files in the system's cache come on top.

Each process makes room for its own part alone and reads one tensor after the other (build.assemble_dit).
"""

import math
from collections.abc import Iterable

from ospnext_ms.models.parameters import Shape, umt5_shapes
from ospnext_ms.planning import memory, shapes
from ospnext_ms.planning.workload import Workload

# Devices, and so processes, of one host.
IN_HOST = 8
# A tensor that is read is held in fp32, and once more where it is cut and cast.
COPIES = 2


def loading(workload: Workload) -> dict[str, int]:
    """{network: bytes of a process at its highest}; the text encoder is let go before the transformer is loaded."""
    estimate = memory.estimate(workload)
    held = {**estimate.phases.get("denoising", {}), **estimate.lasting}
    networks = {"transformer": memory.host_weights(workload) + held.get("VAE", 0)
                + _read(shapes.dit_parameters(workload.dit).values())}
    if (config := workload.text_encoder) is not None:
        table = umt5_shapes(vocab_size=config.vocab_size, dim=config.dim, ffn_dim=config.ffn_dim,
                            num_heads=config.num_heads, num_layers=config.num_layers, num_buckets=config.num_buckets)
        networks["text encoder"] = workload.stored * shapes.count(table) + _read(table.values())
    return networks


def staying(workload: Workload) -> int:
    """Bytes of a process that stay on the host as long as it generates; 0 where all weights go to the device."""
    return memory.block_bytes(workload) if workload.offload else 0


def of_host(workload: Workload) -> tuple[int, int]:
    """(processes, bytes of all of them at their highest) of one host."""
    processes = min(workload.devices, IN_HOST)
    return processes, processes * max(loading(workload).values())


def _read(tensors: Iterable[Shape]) -> int:
    return COPIES * 4 * max(map(math.prod, tensors))
