"""Supervised fine-tuning: builds what a TrainConfig asks for and runs its steps.

The pieces are elsewhere and know nothing of each other: inputs, step, clipper, average, checkpoints, figures.
"""

import json
from dataclasses import asdict
from pathlib import Path

import mindspore as ms
import numpy as np

from ospnext_ms.build import assemble_dit
from ospnext_ms.config.resuming import TRAIN_MAY_CHANGE
from ospnext_ms.config.sections import latent_shape_of
from ospnext_ms.data.cache import Cache
from ospnext_ms.generation.coders import FrameDecoder, embed_texts
from ospnext_ms.generation.prompt_sampler import PromptSampler
from ospnext_ms.generation.team import SpreadTiles
from ospnext_ms.models.flops import forward_flops, model_flops_utilisation
from ospnext_ms.parallel.agreement import Highest
from ospnext_ms.parallel.interruption import Interruption
from ospnext_ms.parallel.messages import GatherTexts
from ospnext_ms.quant.recipe import describe
from ospnext_ms.reporting.clock import StepClock
from ospnext_ms.reporting.curves import draw_loss
from ospnext_ms.reporting.metrics import has_figure
from ospnext_ms.reporting.monitor import Monitor
from ospnext_ms.reporting.profile import StepProfile
from ospnext_ms.reporting.progress import training_line
from ospnext_ms.storage import fingerprint
from ospnext_ms.storage.open_weights import open_weights, read_headers, refuse_damaged
from ospnext_ms.training.adapters import AdapterFiles, start_fingerprint
from ospnext_ms.training.fixed_set import FixedSet
from ospnext_ms.training.inputs import StepInputs, open_source, samples_per_step
from ospnext_ms.training.learner import Learner
from ospnext_ms.training.loss import VelocityLoss
from ospnext_ms.training.resume import leave, open_run, run_state
from ospnext_ms.training.validation import Validation, follow_ode, prompts_of

# So many samples of a process are named where something is not finite.
_NAMED = 20


class Trainer:
    """One run of `train` on this process.

    Everything that the configuration names is opened and compared when it is made, before the first step.

    Args:
        config: TrainConfig. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh.
        interruption: Interruption, None where signals are somebody else's.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit; a damaged
            checkpoint with none before it.
    """

    def __init__(self, config, runtime, mesh, interruption=None):
        self.config = config
        self.interruption = interruption or Interruption()
        self.runtime = runtime
        self.mesh = mesh
        self.encodes = _encodes(config)
        encode = self._clip_encoder()
        self.source = open_source(config, mesh, encode)
        self.inputs = StepInputs(config, self.source, mesh)
        self.identity = self._identity()
        # Where the VAE only decodes what is looked at, it has no part in what is learned.
        may_change = TRAIN_MAY_CHANGE if self.encodes else TRAIN_MAY_CHANGE | {"model.vae"}
        self.store, resumed = open_run(config, runtime, self.identity, may_change, mesh, mesh.shard_group.index,
                                       mesh.shard_group.size, _read_once(config))
        texts = self._embed_watched()
        self._build(resumed)
        self.validation = config.validation and self._make_validation(texts)
        self.fixed_set = None
        if config.eval_dataset:
            holds_videos = Cache(config.eval_dataset.path).contents == "videos"
            self.fixed_set = FixedSet(config.eval_dataset, config.flow, config.model.dit, mesh,
                                      encode if holds_videos else None)
        self.steps_done = resumed.step if resumed else 0
        self._highest, self._gather_texts = Highest(mesh.world_group), GatherTexts(mesh.world_group, "names of samples")

    def run(self):
        """Trains to the last step and returns the paths of what there is to look at, none on silent processes.

        Raises:
            FloatingPointError: loss or gradient stopped being finite; nothing was changed in that step.
            SystemExit: a signal asked for an end; the step it came in is done and saved.
        """
        config, total = self.config, self.config.runner_config.steps
        monitor = None
        if self.mesh.reports:
            monitor = Monitor(config, total, self.steps_done, training_line, draw_loss, self.source.note,
                              self.runtime.about(self.mesh.size))
            beside = self.adapters.nbytes if self.adapters else 0
            monitor.say(self.store.check_space(self.learner.state.nbytes + beside))
        is_due = self._is_missing_an_evaluation()
        is_unseen = self.validation and self.validation.is_missing(self.steps_done, total)
        if self.steps_done == total and not is_due and not is_unseen and monitor:
            monitor.say(f"nothing to do: all {total} steps are done")
        self.interruption.begin()
        self._look_at_weights(is_due, is_unseen, monitor)
        clock = StepClock(total - self.steps_done, self.runtime.tries_threads)
        # The VAE runs on the device, which is the main thread's.
        inputs_ahead = self.inputs.ahead(self.steps_done, total, threaded=not self.encodes)
        self.profile = StepProfile(config.callbacks.profile, config.output_dir, self.mesh.rank, monitor and monitor.say)
        for inputs in self.profile.steps(self.steps_done + 1, inputs_ahead):
            figures = self.train_step(inputs)
            figures |= self._speed(clock.tick(), inputs[0][0].shape)
            self.steps_done += 1
            if monitor:
                monitor.step(self.steps_done, figures, clock.seconds_left)
            every = config.callbacks.save_checkpoint_steps
            asked = self._asked if self.steps_done < total else 0
            if self.steps_done % every == 0 or self.steps_done == total or asked:
                self.save()
            if asked:
                leave(asked, f"step {self.steps_done}", self.store, self._highest, monitor)
            self.store.look()
            is_due = self._evaluation_is_due()
            is_unseen = self.validation and self.validation.is_due(self.steps_done, total)
            self._look_at_weights(is_due, is_unseen, monitor)
            if is_due or is_unseen:
                clock.skip()
        self.store.wait()
        if not monitor:
            return []
        adapters = self.adapters.write(config.output_dir) if self.adapters else []
        return [*adapters, *self.store.paths()[-1:], *monitor.close()]

    def save(self):
        """Starts to save a checkpoint of the steps done; waits for no more than the copies in host memory."""
        state = self.learner.state
        if not state.writes:
            return
        done = self.steps_done
        values = {
            "step": done,
            # Every random number is drawn from (seed, step, sample): this is the state of all generators.
            "random": {"seed": self.config.seed, "next_step": done},
            "data": {"epoch": self.source.epoch(done), "next_step": done},
            **run_state(self.config, self.identity),
            **state.json_state(),
        }
        self.store.save(done, state.copy_to_host(), values, self.adapters and self.adapters.copy())

    def train_step(self, inputs):
        """One step, without the time it took; {name: number} of its figures.

        Raises:
            FloatingPointError: loss or gradient is not finite, on all processes, before anything is changed; names
                step, ranks and samples.
        """
        step = self.steps_done
        gradients = self.learner.gradients(inputs, self.interruption.asked, self.profile.end)
        self._asked = gradients.asked
        try:
            figures = self.learner.update(gradients, step, step)
            self.profile.end("update")
        except FloatingPointError as error:
            # The checkpoint that may be on its way is of an earlier step, so it is sound.
            self.store.wait()
            samples = self._suspects(gradients.bad_ranks)
            raise FloatingPointError(f"step {step + 1}: {error}{samples}") from error
        return {"loss": gradients.loss, "gradient_norm": gradients.norm, **figures, "epoch": self.source.epoch(step)}

    def _speed(self, seconds, shape):
        runner, dit = self.config.runner_config, self.config.model.dit
        samples = samples_per_step(self.config) * self.mesh.data_size
        figures = {"step_seconds": seconds, "samples_per_second": samples / seconds}
        if runner.peak_tflops:
            grid = tuple(n // patch for n, patch in zip(shape[2:], dit.patch_size, strict=True))
            flops = forward_flops(dit, grid)["total"]
            figures["mfu"] = model_flops_utilisation(flops, samples, seconds, runner.peak_tflops, self.mesh.size)
        return figures

    def _suspects(self, bad_ranks):
        """Words that name the samples of the ranks where something is not finite; all processes call it."""
        batch = self.source.batch(self.steps_done)
        is_bad = [not (np.isfinite(latent).all() and np.isfinite(text).all())
                  for latent, text in zip(batch.latents, batch.text, strict=True)]
        names = [name for name, bad in zip(batch.names, is_bad, strict=True) if bad] if batch.names else []
        mine = {"bad": names[:_NAMED], "all": list(batch.names[:_NAMED])}
        told = list(map(json.loads, self._gather_texts(json.dumps(mine))))
        words = [f"rank {rank}: " + (f"{', '.join(told[rank]['bad'])} (not finite as stored)" if told[rank]["bad"]
                                     else ", ".join(told[rank]["all"])) for rank in bad_ranks if told[rank]["all"]]
        if not words:
            return ""
        return f". Samples of the step: {'; '.join(words)}. train_dataset.exclude leaves samples out, by name"

    def _is_missing_an_evaluation(self):
        """Whether an evaluation is due at this step which the run that was stopped has not made."""
        if not (self.config.eval_dataset and (self.steps_done == 0 or self._evaluation_is_due())):
            return False
        made = self.mesh.reports and has_figure(self.config.output_dir, self.steps_done, "eval_loss")
        return not self._highest(int(made))

    def _evaluation_is_due(self):
        section, total = self.config.eval_dataset, self.config.runner_config.steps
        return section and (self.steps_done == total or bool(section.every and self.steps_done % section.every == 0))

    def _look_at_weights(self, measures, makes_videos, monitor):
        if measures:
            self._evaluate(monitor)
        if makes_videos:
            self.validation(self.steps_done, self.learner.ema, monitor)

    def _evaluate(self, monitor):
        if self.fixed_set is None:
            return
        figures = {"eval_loss": self.fixed_set.mean_loss(self.evaluation_loss)}
        with self.learner.ema.in_place():
            figures["eval_loss_ema"] = self.fixed_set.mean_loss(self.evaluation_loss)
        if monitor:
            monitor.record(self.steps_done, figures)
            monitor.say(f"step {self.steps_done}: loss on the fixed set {figures['eval_loss']:.5f}, "
                        f"of the average {figures['eval_loss_ema']:.5f}")

    def _clip_encoder(self):
        """The VAE for a cache that holds videos, None where it has nothing to encode."""
        if not self.encodes:
            return None
        from ospnext_ms.generation.coders import ClipEncoder

        return ClipEncoder(self.config.model.vae, self.runtime)

    def _embed_watched(self):
        """{text: embedding} of what validation shows, made before the transformer is there."""
        section = self.config.validation
        if section is None:
            return {}
        return embed_texts(self.config.model, [*prompts_of(section), section.negative_prompt], self.runtime)

    def _make_validation(self, texts):
        config, mesh, section = self.config, self.mesh, self.config.validation
        sample = PromptSampler(follow_ode(self.runtime.compile(self.net), section), texts, section.negative_prompt, 1)
        decode = None
        if mesh.is_leader or config.model.vae.tiling:
            decode = FrameDecoder(config.model.vae, self.runtime.compiled, SpreadTiles(mesh.video_group))
        shape = latent_shape_of(section.video, config.model.vae)
        return Validation(section, asdict(section) | {"every": None}, section.video, shape, config.output_dir, sample,
                          decode, mesh)

    def _identity(self):
        """What a checkpoint depends on beside the configuration, see training/resume.py."""
        vae = self.config.model.vae if self.encodes else None
        # Without adapters a checkpoint holds the weights themselves.
        base = self.config.load_checkpoint if self.config.lora else None
        own = {"contents of load_checkpoint": fingerprint.of_checkpoint(base)} if base else {}
        return own | {
            "samples of a step on all processes (batch_size, gradient_accumulation_steps, data_parallel)":
                samples_per_step(self.config) * self.mesh.data_size,
            "contents of train_dataset.path": self.source.fingerprint(),
            "contents of model.vae.checkpoint": vae and fingerprint.of_checkpoint(vae.checkpoint),
        }

    def _starting_weights(self, resumed):
        """({name: stored tensor}, where they lie) of the whole network, (None, None) for random ones."""
        path = self.config.load_checkpoint
        if self.config.lora:
            return open_weights(path), path
        if resumed:
            return resumed.groups["parameters"], resumed.path
        if path is None:
            return None, None
        # Not open_weights: what is trained does not come out of 8 bits.
        refuse_damaged(path)
        return read_headers(path), path

    def _build(self, resumed):
        config = self.config
        tensors, path = self._starting_weights(resumed)
        # Equal on all processes, whatever part of the weights each will hold.
        ms.set_seed(config.seed)
        lora = config.lora
        built = assemble_dit(config.model.dit, self.runtime, self.mesh, tensors, path,
                             param_dtype=None if lora else ms.float32,
                             residual_dtype=config.model.dit.residual_dtype,
                             switch_dtype=config.parallel_config.switch_dtype, lora=lora,
                             adapter=lora.checkpoint if lora and not resumed else None, seed=config.seed,
                             training=True, recompute=config.recompute_config.recompute)
        self.net, self.sharded = built.net, built.sharded
        net = self.net
        parameters = built.adapters.named_parameters if lora else dict(net.parameters_and_names())
        self.learner = Learner(config, parameters, VelocityLoss(net), config.runner_config.steps, self.runtime,
                               self.mesh, self.sharded)
        self.adapters = built.adapters and AdapterFiles(built.adapters, self.learner.state)
        self.evaluation_loss = self.runtime.compile(VelocityLoss(net))
        if resumed:
            self.learner.state.restore(resumed)
        if self.mesh.reports:
            origin = resumed.path if resumed else "random weights" if path is None else path
            count = sum(int(np.prod(self.sharded.shape(n, p.shape))) for n, p in parameters.items())
            what = f"parameters of adapters beside {path}" if lora else "parameters"
            print(f"{'resuming after step ' + str(resumed.step) if resumed else 'starting'} from {origin}; {count:,} "
                  f"{what}, {self.mesh.size} processes", flush=True)
            if self.source.excluded:
                print(f"{len(self.source.excluded)} samples are left out (train_dataset.exclude)", flush=True)
            if quantised := describe(config.model.dit, self.runtime):
                print(quantised, flush=True)


def _read_once(config):
    """{name: hash} of what a run reads beside its data; weights that are gone are no matter to a resumed one."""
    weights = config.load_checkpoint and Path(config.load_checkpoint)
    return {"contents of load_checkpoint": fingerprint.of_checkpoint(weights) if weights and weights.exists() else None,
            "contents of lora.checkpoint": config.lora and start_fingerprint(config.lora),
            "contents of eval_dataset.path": config.eval_dataset and Cache(config.eval_dataset.path).fingerprint(),
            "contents of validation.prompts":
                config.validation and fingerprint.of_values(prompts_of(config.validation))}


def _encodes(config):
    """Whether the VAE encodes clips, and does not only decode what validation shows."""
    path = config.train_dataset.path
    return config.model.vae is not None and (
        config.validation is None or path is not None and Cache(path).contents == "videos")
