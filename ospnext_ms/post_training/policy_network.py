"""The networks of a post-training run: the frozen transformer with its adapters, compiled on both paths."""

from ospnext_ms.build import assemble_dit
from ospnext_ms.post_training.policy import GuidedVelocity, PolicyLoss, StepLogProb
from ospnext_ms.storage.open_weights import open_weights


class Policy:
    """What samples and what is trained: one network, its adapters, and the Cells around it.

    `velocity` and `step_log_prob` are compiled; `loss` is left to whoever takes its gradient.

    Args:
        config: PostTrainConfig. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh. adapter: folder of the adapter to
            start from, None for a new one.
    """

    def __init__(self, config, runtime, mesh, adapter=None):
        section = config.model.dit
        built = assemble_dit(section, runtime, mesh, open_weights(section.checkpoint), section.checkpoint,
                             residual_dtype=section.residual_dtype,
                             switch_dtype=config.parallel_config.switch_dtype, lora=config.lora, adapter=adapter,
                             seed=config.seed, training=True, recompute=config.recompute_config.recompute)
        self.adapters, self.sharded = built.adapters, built.sharded
        guided = GuidedVelocity(built.net, config.sampling.guidance)
        step_log_prob = StepLogProb(guided)
        policy = config.policy
        self.with_kl = policy.measure_kl or policy.kl_weight > 0
        self.velocity = runtime.compile(guided)
        self.step_log_prob = runtime.compile(step_log_prob)
        self.loss = PolicyLoss(StepLogProb(guided), policy.clip, policy.kl_weight, self.with_kl)
