"""What several processes that share a video in HiF8 do.

Every process also computes the same alone, and tells how the scales, the quantised operands of the first linear layer
and of the first attention, and the outputs compare, for both scopes of the scales, and with centred keys; and whether
weights held in 8 bits compute the same where they are spread over the processes.
"""

from dataclasses import replace

import numpy as np

from ospnext_ms.config.sections import ParallelSection
from ospnext_ms.hif8_format import round_nearest
from ospnext_ms.models.config import DiTConfig, QuantConfig
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.parallel.mesh import make_mesh
from ospnext_ms.parallel.sharding import ShardedWeights
from ospnext_ms.parallel.ssp import ParallelSequence
from ospnext_ms.quant.network import freeze_linears, quantized_parts
from ospnext_ms.skiparse import SkiparsePlan
from tests.distributed.network import Loss, inputs
from tests.support.weights import random_weights

GRID = (3, 7, 10)
CONFIG = DiTConfig(dim=32, ffn_dim=60, num_heads=4, num_layers=2, freq_dim=16, text_dim=8, text_len=6,
                   num_full_blocks=0, quant="hif8", quant_attention="hif8")


def observe(config, mesh=None):
    """{"loss", "out", "scale", "x8", "k8", "v_factor", "calls"} of a network with known weights; without mesh alone."""
    sequence = ParallelSequence(config.sparse_ratio, config.num_heads, mesh) if mesh else None
    parts = quantized_parts(config, video_group=mesh.video_group if mesh else None)
    net = OSPNextDiT(config, sequence=sequence, **parts)
    random_weights(net)
    seen = {}
    linear, attention = net.blocks[0].self_attn.q, net.blocks[0].self_attn.inputs
    if attention is None:
        attention = net.blocks[0].self_attn.attention.inputs
    linear.input_scale.register_forward_hook(lambda cell, args, out: seen.update(x=args[0], scale=out))

    # What a hook returns would take the place of the output.
    def keep_first(cell, args, out):
        seen.setdefault("attention", out)

    attention.register_forward_hook(keep_first)
    loss, out = Loss(net)(*inputs(GRID, 1))
    x = seen["x"].asnumpy()
    return {"loss": float(loss), "out": out.asnumpy(), "scale": seen["scale"].asnumpy(),
            "x8": round_nearest(np.ascontiguousarray(x * seen["scale"].asnumpy())),
            "k8": seen["attention"][1].asnumpy(), "v_factor": seen["attention"][3].asnumpy(),
            "calls": dict(mesh.traffic.calls) if mesh else {}}


def compare(mesh, degrees, scope, centre_keys=False):
    """What a scope of the scales does to a network that several processes share, as JSON values."""
    config = replace(CONFIG, quant_config=QuantConfig(scale_scope=scope, centre_keys=centre_keys))
    alone, shared = observe(config), observe(config, mesh)
    tokens = SkiparsePlan(GRID, 2, *degrees).rank_tokens("token", mesh.s, mesh.u)
    rows = np.argsort(SkiparsePlan(GRID, 2).order("token"))[tokens]
    attention = {}
    if scope == "global":
        # With local scales q, k and v are quantised after they were received and cut.
        attention = {"v_factor_error": float(np.abs(shared["v_factor"] / alone["v_factor"] - 1).max()),
                     "k8_unequal": float((shared["k8"][0] != alone["k8"][0][rows]).mean())}
    return attention | {
        "scale_error": float(np.abs(shared["scale"] / alone["scale"] - 1).max()),
        "x8_unequal": float((shared["x8"] != alone["x8"][rows]).mean()),
        "out_error": float(np.linalg.norm(shared["out"] - alone["out"]) / np.linalg.norm(alone["out"])),
        "loss_difference": abs(shared["loss"] - alone["loss"]) / abs(alone["loss"]),
        "scale_exchanges": shared["calls"].get("scales", 0),
        "key_exchanges": shared["calls"].get("key_means", 0),
    }


def spread_codes(workers):
    """Weights held in 8 bits by one process, and by all together: {"equal": outputs, "held": share of the codes}."""
    mesh = make_mesh(ParallelSection(parameter_shard=workers))
    outputs, held = [], []
    for spread in (False, True):
        net = OSPNextDiT(CONFIG, **quantized_parts(CONFIG))
        random_weights(net)
        freeze_linears(net)
        if spread:
            ShardedWeights(net, mesh)
        outputs.append(Loss(net)(*inputs(GRID, 1))[1].asnumpy())
        held.append(net.blocks[0].self_attn.q.weight.nbytes)
    return {"equal": bool(np.array_equal(*outputs)), "held": held[1] / held[0]}


def compare_scopes(degrees):
    """What "SxU" processes that share a video find: {"local", "global", "centred", "centred locally", "codes"}."""
    skiparse, ulysses = map(int, degrees.split("x"))
    results = {}
    for name, scope, centre_keys in (("local", "local", False), ("global", "global", False),
                                     ("centred", "global", True), ("centred locally", "local", True)):
        # A mesh for each, so that traffic is counted apart.
        mesh = make_mesh(ParallelSection(skiparse_parallel=skiparse, ulysses_parallel=ulysses))
        results[name] = compare(mesh, (skiparse, ulysses), scope, centre_keys)
    return results | {"codes": spread_codes(mesh.size)}
