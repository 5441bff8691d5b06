"""What is compiled: every path that the product runs on Ascend, with made-up inputs of the right shapes.

Runs in a process of its own, in MindSpore's dry run: python -m tools.ascend_dry_run.cases NAME [JSON OPTIONS]. Every
stage that compiled is told in a line "STAGE name seconds".
"""

import json
import sys
import time
from contextlib import contextmanager

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, ops
from mindspore.nn.utils import no_init_parameters

from ospnext_ms.build import assemble_dit
from ospnext_ms.config.sections import ContextSection, ParallelSection
from ospnext_ms.kernels import hif8_backend
from ospnext_ms.kernels.hif8_operators import held_tensor
from ospnext_ms.models.config import DiTConfig, QuantConfig, UMT5Config, VAEConfig
from ospnext_ms.models.lora import LoRAConfig
from ospnext_ms.parallel.mesh import Mesh, start_processes
from ospnext_ms.runtime import start

SMALL = dict(dim=1024, ffn_dim=2048, num_heads=8, num_layers=8, freq_dim=256, text_dim=256, text_len=512,
             num_full_blocks=4)
SMALL_GRID = (5, 9, 10)
LORA_TARGETS = ("q", "k", "v", "o")
CASES = {}


def case(function):
    """Puts a function into CASES under its name."""
    CASES[function.__name__.replace("_", "-")] = function
    return function


@contextmanager
def stage(name):
    """Tells that something compiled, and the seconds of processor time it took: others may share the machine."""
    began = time.process_time()
    yield
    print(f"STAGE {name} {time.process_time() - began:.1f}", flush=True)


def runtime():
    """Ascend, bf16, compiled."""
    return start(ContextSection(device_target="Ascend"))


def mesh_of(skiparse=1, ulysses=1, shard=1):
    """The mesh of this rank; one process where all degrees are 1."""
    if skiparse * ulysses * shard == 1:
        return Mesh.single()
    return start_processes(ParallelSection(skiparse_parallel=skiparse, ulysses_parallel=ulysses, parameter_shard=shard))


def dit_config(native=False, quant=None, **changes):
    """Shape of the transformer, of SMALL where nothing else is said."""
    shape = SMALL | changes
    if quant:
        shape |= dict(quant="hif8", quant_attention="hif8",
                      quant_config=QuantConfig(backend="native" if native else "emulate"))
    if native:
        # Its probe would compute, which the dry run does not.
        hif8_backend.probe_native = lambda *arguments, **options: (True, "taken for granted")
    return DiTConfig(**shape)


def latent_of(config, grid, batch=1):
    """Latent, timestep and text, zeros."""
    frames, height, width = grid
    _, patch_h, patch_w = config.patch_size
    return (np.zeros((batch, config.in_channels, frames, patch_h * height, patch_w * width), np.float32),
            np.full(batch, 500, np.float32), np.zeros((batch, config.text_len, config.text_dim), np.float32))


def build(config, run, mesh, **options):
    """The transformer without memory for its weights."""
    with no_init_parameters():
        return assemble_dit(config, run, mesh, **options)


def give_memory(parameters):
    """Memory on the device, and none on the host, for parameters without values: to those that a graph or an update is
    the first to read MindSpore gives it twice, which it does not to those that a run has loaded.
    """
    for parameter in parameters:
        parameter.set_data(ops.zeros(parameter.shape, parameter.dtype))


def fill(net):
    """Weights on the host; equal shapes share memory, as a whole 14B is more than many machines have."""
    shared = {}
    for parameter in net.get_parameters():
        kind = parameter.shape, parameter.dtype
        if kind not in shared:
            is_codes = parameter.dtype in (ms.uint8, ms.hifloat8)
            zeros = np.zeros(parameter.shape, np.uint8 if is_codes else np.float32)
            shared[kind] = held_tensor(zeros, parameter.dtype) if is_codes else Tensor(zeros, parameter.dtype)
        parameter.set_data(shared[kind])


@case
def forward(grid=SMALL_GRID, degrees=(1, 1, 1), batch=1, **shape):
    """One forward of the transformer, as generation makes it."""
    run, mesh, config = runtime(), mesh_of(*degrees), dit_config(**shape)
    net = build(config, run, mesh).net
    with stage("forward"):
        run.compile(net)(*map(Tensor, latent_of(config, grid, batch)))


@case
def by_block(grid=SMALL_GRID, degrees=(1, 1, 1), batch=1, **shape):
    """Two forwards of the transformer whose blocks' weights stay on the host, as guidance makes them."""
    from ospnext_ms.models.block_by_block import BlockByBlock

    run, mesh, config = runtime(), mesh_of(*degrees), dit_config(**shape)
    net = build(config, run, mesh).net
    fill(net)
    with stage("forward"):
        velocity = BlockByBlock(net, run.compile)
        inputs = list(map(Tensor, latent_of(config, grid, batch)))
        velocity(*inputs)
    velocity(*inputs)


@case
def gradient(grid=SMALL_GRID, degrees=(1, 1, 1), recompute=True, residual_dtype="fp32", **shape):
    """Loss and gradient of a training step."""
    from ospnext_ms.training.loss import VelocityLoss

    run, mesh, config = runtime(), mesh_of(*degrees), dit_config(**shape)
    built = build(config, run, mesh, param_dtype=ms.float32, residual_dtype=residual_dtype, training=True,
                  recompute=recompute)
    weights = ParameterTuple(built.net.trainable_params())
    step = ms.jit(ms.value_and_grad(VelocityLoss(built.net), None, weights))
    x, _, text = latent_of(config, grid)
    with stage("gradient"):
        step(*map(Tensor, (x, x, np.full(1, 0.5, np.float32), text)))


@case
def step(grid=SMALL_GRID, degrees=(1, 1, 1), batch=1, batches=1, recompute=True, residual_dtype="fp32", rank=None,
         targets=LORA_TARGETS, **shape):
    """A whole training step: gradients, norms, sums over the processes, update of weights, moments and averages.

    With `rank` of adapters, on a frozen network.
    """
    from ospnext_ms.training.ema import Ema
    from ospnext_ms.training.loss import VelocityLoss
    from ospnext_ms.training.optimizer import make_optimizer, set_learning_rate
    from ospnext_ms.training.step import TrainStep

    run, mesh, config = runtime(), mesh_of(*degrees), dit_config(**shape)
    lora = None if rank is None else LoRAConfig(rank=rank, alpha=2.0 * rank, targets=targets)
    built = build(config, run, mesh, param_dtype=None if lora else ms.float32, residual_dtype=residual_dtype,
                  training=True, recompute=recompute, lora=lora)
    trained = built.adapters.parameters if lora else built.net.get_parameters()
    with no_init_parameters():
        optimizer = make_optimizer(trained, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    give_memory((*built.net.get_parameters(), *optimizer.exp_avg, *optimizer.exp_avg_sq))
    train = TrainStep(VelocityLoss(built.net), optimizer, Ema(optimizer.parameters, 0.999), run, mesh, built.sharded)
    x, _, text = latent_of(config, grid, batch)
    micro_batches = [(x, x, np.full(batch, 0.5, np.float32), text)] * batches
    with stage("gradients"):
        gradients = train.gradients(micro_batches)
    with stage("update"):
        set_learning_rate(optimizer, 1e-5)
        train.update(gradients, 1.0, 0)
    # A step's peak is that of the second: the averages have memory from the first update on.
    del gradients
    train.gradients(micro_batches)


@case
def umt5(**shape):
    """The text encoder."""
    from ospnext_ms.models.umt5 import UMT5Encoder

    run = runtime()
    config = UMT5Config(**(dict(vocab_size=1000, dim=512, ffn_dim=1024, num_heads=8, num_layers=2) | shape))
    with no_init_parameters():
        net = UMT5Encoder(config, run.dtype)
    with stage("umt5"):
        run.compile(net)(Tensor(np.zeros((1, 512), np.int32)), Tensor(np.ones((1, 512), np.int32)))


@case
def vae(dim=32, height=8, width=8, frames=3, parts=("decode", "encode")):
    """Decoding and encoding, the graphs of the first chunk and of the later ones; sizes of the latent."""
    from ospnext_ms.models.vae import WanVAE

    runtime()
    with no_init_parameters():
        net = WanVAE(VAEConfig(dim=dim), ms.float32, compile_chunks=True)
    net.set_train(False)
    if "decode" in parts:
        with stage("decode"):
            net.decode(Tensor(np.zeros((1, 16, frames, height, width), np.float32)))
    if "encode" in parts:
        with stage("encode"):
            net.encode(Tensor(np.zeros((1, 3, 4 * (frames - 1) + 1, 8 * height, 8 * width), np.float32)))


@case
def policy(grid=SMALL_GRID, degrees=(1, 1, 1), batch=1, rank=8, recompute=False, residual_dtype="fp32",
           targets=LORA_TARGETS, **shape):
    """Scoring and gradient of post-training, adapters on a frozen network, and a stochastic step."""
    from ospnext_ms.diffusion.sampler import sde_step
    from ospnext_ms.post_training.policy import GuidedVelocity, PolicyLoss, StepLogProb

    run, mesh, config = runtime(), mesh_of(*degrees), dit_config(**shape)
    lora = LoRAConfig(rank=rank, alpha=2.0 * rank, targets=targets)
    built = build(config, run, mesh, lora=lora, residual_dtype=residual_dtype, training=True, recompute=recompute)
    give_memory(built.net.get_parameters())
    guided = GuidedVelocity(built.net, 5.0)
    x, _, text = map(Tensor, latent_of(config, grid, batch))
    one = Tensor(np.full(batch, 0.5, np.float32))
    with stage("scoring"):
        run.compile(StepLogProb(guided))(x, x, text, text, one, one, one)
    loss = PolicyLoss(StepLogProb(guided), 1e-3, 0.1, True)
    step = ms.jit(ms.value_and_grad(loss, None, ParameterTuple(built.adapters.parameters)))
    with stage("gradient"):
        step(x, x, text, text, one, one, one, one, one, one, x, Tensor(1.0, ms.float32))
    sde_step(x, x, *(Tensor(level, ms.float32) for level in (0.5, 0.4, 0.3)), noise=x)


def main(name, options="{}"):
    """Runs a case."""
    values = json.loads(options)
    CASES[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    print("DONE", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
