"""The networks of a post-training run: the frozen transformer with its adapters, compiled on both paths."""

from mindspore.nn.utils import no_init_parameters

from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.models.lora import Adapters
from ospnext_ms.parallel.sharding import ShardedWeights
from ospnext_ms.post_training.policy import GuidedVelocity, PolicyLoss, StepLogProb
from ospnext_ms.runtime import DTYPES
from ospnext_ms.storage.peft_format import read_adapter
from ospnext_ms.storage.weights import load_weights


class Policy:
    """What samples and what is trained: one network, its adapters, and the Cells around it.

    `velocity` and `step_log_prob` are compiled; `loss` is left to whoever takes its gradient.

    Args:
        config: PostTrainConfig. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh.
    """

    def __init__(self, config, runtime, mesh):
        section = config.model.dit
        with no_init_parameters():
            net = _build(section, runtime, mesh, config.recompute_config.recompute)
        load_weights(net, section.checkpoint)
        self.adapters = Adapters(net, config.lora, config.seed)
        if config.lora.checkpoint is not None:
            self.adapters.load(read_adapter(config.lora.checkpoint)[1])
        self.sharded = ShardedWeights(net, mesh, runtime.dtype)
        guided = GuidedVelocity(net, config.sampling.guidance)
        step_log_prob = StepLogProb(guided)
        policy = config.policy
        self.with_kl = policy.measure_kl or policy.kl_weight > 0
        self.velocity = runtime.compile(guided)
        self.step_log_prob = runtime.compile(step_log_prob)
        self.loss = PolicyLoss(StepLogProb(guided), policy.clip, policy.kl_weight, self.with_kl)


def _build(section, runtime, mesh, recompute):
    sequence = None
    if mesh.video_group.size > 1:
        from ospnext_ms.parallel.sequence import ParallelSequence

        sequence = ParallelSequence(section.sparse_ratio, section.num_heads, mesh)
    residual = DTYPES[section.residual_dtype] if section.residual_dtype else None
    net = OSPNextDiT(section, runtime.dtype, residual_dtype=residual, sequence=sequence,
                     video_group=mesh.video_group)
    net.set_train(True)
    if recompute:
        for block in net.blocks:
            block.recompute()
    return net
