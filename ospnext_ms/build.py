"""The way from a configuration, a runtime and a mesh to networks with their weights: quantised, sharded, adapted.

Networks are made without memory for their weights, sharded, and then given each process's part of what is stored,
tensor by tensor: a process never holds more than its own part and one tensor.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import mindspore as ms
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from ospnext_ms.kernels.graphs import compile_once
from ospnext_ms.models.config import QuantConfig
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.lora import Adapters, attach
from ospnext_ms.models.umt5 import UMT5Encoder
from ospnext_ms.models.vae import WanVAE
from ospnext_ms.parallel.mesh import Mesh
from ospnext_ms.parallel.sharding import ShardedWeights
from ospnext_ms.parallel.ssp import ParallelSequence
from ospnext_ms.quant.network import freeze_linears, quantized_parts
from ospnext_ms.runtime import DTYPES
from ospnext_ms.storage.adapters import combine, with_differences
from ospnext_ms.storage.files import conversion
from ospnext_ms.storage.hif8_weights import as_held
from ospnext_ms.storage.open_weights import open_headers, open_weights
from ospnext_ms.storage.peft_format import read_adapter, read_stored_adapter
from ospnext_ms.storage.weights import load_weights, mismatch_report, round_to, set_tensors

# What the converter calls the networks of a ModelSection.
CONVERTED_AS = {"dit": "dit", "vae": "vae", "text_encoder": "umt5"}
SWITCH_DTYPES = {None: None, "fp16": ms.float16, "bf16": ms.bfloat16}


@dataclass(frozen=True)
class BuiltDiT:
    """A transformer and what belongs to it: which of its weights are spread, and its adapters (None without)."""

    net: nn.Cell
    sharded: ShardedWeights
    adapters: Adapters | None


def build_dit(config, runtime, mesh=None, *, adapters=(), switch_dtype=None) -> nn.Cell:
    """The transformer of a DiTSection with its checkpoint's weights, for inference.

    Args:
        config: DiTSection. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh, None for one process.
        adapters: (folder of a LoRA adapter in PEFT's format, strength) pairs, used beside the network's own weights.
        switch_dtype: see assemble_dit.

    Raises:
        FileNotFoundError, ValueError: no checkpoint or adapter there, or one that does not fit.
    """
    tensors = open_weights(config.checkpoint)
    beside, differences = combine((read_stored_adapter(folder), strength) for folder, strength in adapters)
    tensors = with_differences(tensors, differences, config.checkpoint)
    return assemble_dit(config, runtime, mesh, tensors, config.checkpoint, beside=beside,
                        switch_dtype=switch_dtype).net


def assemble_dit(config, runtime, mesh=None, tensors: Mapping | None = None, origin: str = "", *, param_dtype=None,
                 residual_dtype="fp32", switch_dtype=None, lora=None, adapter=None, beside=None, seed=0, training=False,
                 recompute=False) -> BuiltDiT:
    """The transformer of a DiTConfig, for whatever it is used.

    Linears that compute in HiF8 and are not trained (inference, or adapters beside them) hold their weights in 8 bits.

    Args:
        config: DiTConfig. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh, None for one process.
        tensors: {name: stored tensor}, of which this process takes its part; None leaves the random start, which is
            MindSpore's (see mindspore.set_seed). origin: their name in errors.
        param_dtype: storage dtype of the linears' weights, default the compute dtype.
        residual_dtype: "fp32" or "bf16" of the residual stream.
        switch_dtype: "fp16" or "bf16" of what a switch between processes sends, None for the stream as it is.
        lora: LoRAConfig of adapters to make; the network's own weights are frozen then. adapter: folder of an adapter
            in PEFT's format to load, which also says how large it is where `lora` is None. seed: of new adapters.
        beside: {layer: (A, B)} of adapters that are used, not trained (models.lora.attach).
        training: gradients will be asked for. recompute: keep only the blocks' inputs for them.

    Raises:
        FileNotFoundError: no adapter there. ValueError: tensors or an adapter that do not fit the network.
    """
    mesh = mesh or Mesh.single()
    arrays = None
    if adapter is not None:
        stored_lora, arrays = read_adapter(adapter)
        lora = lora or stored_lora
        if not math.isclose(lora.scaling, stored_lora.scaling, rel_tol=1e-6):
            raise ValueError(f"{adapter} has alpha {stored_lora.alpha:g} at rank {stored_lora.rank}, but lora.alpha is "
                             f"{lora.alpha:g} at rank {lora.rank}; it would be another adapter")
    if tensors is None:
        net = _network(config, runtime, mesh, param_dtype, residual_dtype, switch_dtype)
    else:
        with no_init_parameters():
            net = _network(config, runtime, mesh, param_dtype, residual_dtype, switch_dtype)
    net.set_train(training)
    codes = freeze_linears(net) if config.quant and (lora is not None or not training) else {}
    if codes and tensors is not None:
        tensors = as_held(tensors, codes, config.quant_config.scale_max_forward,
                          partial(round_to, dtype=param_dtype or runtime.dtype))
    names = [name for name, _ in net.parameters_and_names()]
    adapters = None if lora is None else Adapters(net, lora, seed)
    if beside:
        attach(net, beside)
    if arrays is not None:
        adapters.load(arrays)
    sharded = ShardedWeights(net, mesh)
    if tensors is not None:
        # Asked for after sharding, which puts other parameters in the place of those before.
        parameters = dict(net.parameters_and_names())
        set_tensors({name: parameters[name] for name in names}, tensors, origin, sharded)
    if training and runtime.compiled:
        compile_once(net.blocks, [("full" if pattern == "full" else "sparse")
                                  + ("" if i in config.quantised_blocks else "_plain")
                                  for i, pattern in enumerate(config.block_patterns)])
    if recompute:
        for block in net.blocks:
            block.recompute()
    return BuiltDiT(net, sharded, adapters)


def _network(config, runtime, mesh, param_dtype, residual_dtype, switch_dtype):
    sequence = None
    if mesh.video_group.size > 1:
        sequence = ParallelSequence(config.sparse_ratio, config.num_heads, mesh, SWITCH_DTYPES[switch_dtype])
    return OSPNextDiT(config, runtime.dtype, param_dtype=param_dtype, sequence=sequence,
                      residual_dtype=DTYPES[residual_dtype],
                      **quantized_parts(config, runtime.dtype, param_dtype, mesh.video_group, runtime.compiled))


def build_vae(config, compile_chunks) -> WanVAE:
    """The VAE of a VAESection with its weights. It computes in fp32, as Wan2.1 serves it: it is small, and its rounding
    errors would be seen in the frames. `compile_chunks`: see WanVAE.

    Raises:
        FileNotFoundError, ValueError: no checkpoint there, or one that does not fit.
    """
    with no_init_parameters():
        vae = WanVAE(config, ms.float32, compile_chunks=compile_chunks)
    load_weights(vae, config.checkpoint)
    vae.set_train(False)
    return vae


def build_text_encoder(config, runtime) -> UMT5Encoder:
    """The text encoder of a TextEncoderSection with its weights, in the run's dtype. Raises as build_vae."""
    with no_init_parameters():
        encoder = UMT5Encoder(config, runtime.dtype)
    load_weights(encoder, config.checkpoint)
    encoder.set_train(False)
    return encoder


def check_checkpoints(model):
    """Compares the checkpoints of a ModelSection with its networks, names and shapes, before any weight is read.

    Raises:
        FileNotFoundError: a checkpoint is not there. ValueError: one that does not fit, with what differs.
    """
    plain = replace(model.dit, quant=None, quant_attention=None, quant_config=QuantConfig())
    for name, section, network in (("text_encoder", model.text_encoder, UMT5Encoder), ("dit", plain, OSPNextDiT),
                                   ("vae", model.vae, WanVAE)):
        with no_init_parameters():
            expected = {key: parameter.shape for key, parameter in network(section).parameters_and_names()}
        stored = {key: tensor.shape for key, tensor in open_headers(section.checkpoint).items()}
        if inner := _inner_name(expected, stored):
            raise ValueError(f"model.{name}: {section.checkpoint} holds the network's weights as a part of something, "
                             f"{inner[1]} for {inner[0]}; {conversion(section.checkpoint, CONVERTED_AS[name])}")
        if report := mismatch_report(expected, stored):
            raise ValueError(f"model.{name}: {section.checkpoint} does not fit the configured shape:\n"
                             + "\n".join(report))


def _inner_name(expected, stored):
    """(name, longer name under which it is stored), where all names of a network are stored with something before."""
    longer = {name[i + 1 :]: name for name in stored for i, letter in enumerate(name) if letter == "."}
    return None if expected.keys() - longer.keys() else next((name, longer[name]) for name in expected)
