"""Mix-GRPO (arXiv 2507.21802): iterations of rollout, rewards and policy update on this process.

The pieces are elsewhere: rollout, rewards, advantages, update, evaluation; checkpoints, optimiser and averages are
those of training/. Videos of an iteration are numbered through its groups; every process that shares no video with
another works on consecutive ones. All random draws are functions of the seed, the iteration and the video.
"""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
from mindspore import Tensor

from ospnext_ms.config.post_train import MAY_CHANGE
from ospnext_ms.data.text import pad_text
from ospnext_ms.diffusion.windows import window_start
from ospnext_ms.generation.decoding import FrameDecoder
from ospnext_ms.generation.encoders import TextEncoder
from ospnext_ms.generation.prompts import read_prompts
from ospnext_ms.kernels.collectives import AllGather
from ospnext_ms.post_training.advantages import group_advantages
from ospnext_ms.post_training.evaluation import Evaluation
from ospnext_ms.post_training.figures import PolicyMonitor, update_figures
from ospnext_ms.post_training.policy_network import Policy
from ospnext_ms.post_training.prompts import check_shares, prompts_of_iteration, share
from ospnext_ms.post_training.rewards.combined import CombinedReward, Scores
from ospnext_ms.post_training.rollout import Rollout, batches, group_noise, step_noise
from ospnext_ms.post_training.schedule import rollout_schedule
from ospnext_ms.post_training.update import (
    Experience,
    PolicyStep,
    levels_of,
    loss_inputs,
    minibatches_of_epoch,
    plan_micro_batches,
    score,
)
from ospnext_ms.runtime import release_memory
from ospnext_ms.storage import fingerprint
from ospnext_ms.storage.files import atomic_path
from ospnext_ms.storage.peft_format import write_adapter
from ospnext_ms.training.clipping import AdaptiveClipper
from ospnext_ms.training.ema import Ema
from ospnext_ms.training.optimizer import make_optimizer, make_schedule, set_learning_rate
from ospnext_ms.training.resume import open_run, run_state
from ospnext_ms.training.state import TrainState


class PolicyTrainer:
    """One run of `post-train` on this process.

    Args:
        config: PostTrainConfig. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit.
        RewardError: a reward cannot be made.
    """

    def __init__(self, config, runtime, mesh):
        self.config, self.runtime, self.mesh = config, runtime, mesh
        self.speaks = mesh.rank == 0
        self.folder = Path(config.output_dir)
        self._gather = AllGather(mesh.world_group)
        self.prompts = read_prompts(config.prompt_file)
        held_out = read_prompts(config.evaluation.prompt_file)
        check_shares(config.rollout.prompts, config.rollout.group_size, mesh.data_size)
        self.identity = self._identity()
        self.store, resumed = open_run(config, self.identity, MAY_CHANGE, mesh)
        self.reward = CombinedReward(config.rewards)
        if mesh.is_leader:
            self.reward.start()
        self.texts = self._embed([*self.prompts, *held_out, config.sampling.negative_prompt])
        self.policy = Policy(config, runtime, mesh)
        self.decoder = FrameDecoder(config.model.vae, runtime.compiled) if mesh.is_leader else None
        self.rollout = Rollout(self.policy.velocity, config.rollout.batch_size, config.rollout.rest_sampler)
        self._build_step()
        self.evaluation = Evaluation(config, held_out, self)
        self.iterations_done = self.updates_done = 0
        if resumed:
            self._resume(resumed)

    def run(self):
        """Runs the iterations that are left; returns the paths of what there is to look at."""
        config, total = self.config, self.config.runner_config.iterations
        monitor = PolicyMonitor(self.folder, config, self.iterations_done) if self.speaks else None
        try:
            if self.iterations_done == 0:
                self.evaluation(0, monitor)
            while self.iterations_done < total:
                figures = self.iterate(self.iterations_done)
                self.iterations_done += 1
                done = self.iterations_done
                if monitor:
                    monitor.iteration(done, figures)
                if done % config.callbacks.save_checkpoint_steps == 0 or done == total:
                    self.save()
                if done == total or (config.evaluation.every and done % config.evaluation.every == 0):
                    self.evaluation(done, monitor)
            self.store.wait()
            paths = self._write_adapters() if self.speaks else []
            return paths + (monitor.close() if monitor else [])
        finally:
            self.reward.close()

    def iterate(self, iteration):
        """One iteration; returns its figures."""
        config, clock = self.config, _Clock()
        window = config.rollout.window
        start = window_start(window.strategy, window.size, window.every, config.sampling.steps, iteration, config.seed)
        schedule = rollout_schedule(config.sampling.steps, config.sampling.shift, start, window.size,
                                    config.rollout.noise, config.rollout.eta, config.rollout.rest_steps)
        chosen = prompts_of_iteration(iteration, config.rollout.prompts, len(self.prompts), config.seed)
        videos = list(share(config.rollout.prompts * config.rollout.group_size, self.mesh.data_rank,
                            self.mesh.data_size))
        groups = [video // config.rollout.group_size for video in videos]
        prompts = [self.prompts[chosen[group]] for group in groups]
        trajectory = self._roll_out(schedule, iteration, videos, groups, chosen)
        clock.lap("rollout")
        waiting = self.judge(trajectory.latents, prompts, config.rollout.reward_frames)
        clock.lap("decoding")
        scores = self.gather_scores(waiting, len(videos))
        clock.lap("waiting_for_rewards")
        all_groups = np.arange(config.rollout.prompts * config.rollout.group_size) // config.rollout.group_size
        advantages = group_advantages(scores.total, all_groups, config.policy.advantage_limit)
        texts = np.stack([self.texts[prompt] for prompt in prompts])
        experience = Experience(trajectory.samples, texts, self._negative, levels_of(schedule),
                                advantages.values[videos])
        micro_batches = self._score(experience, advantages.used, iteration)
        clock.lap("scoring")
        updates = self._update(experience, micro_batches, iteration)
        clock.lap("update")
        return {"window_start": start, "log_prob_disagreement": _disagreement(trajectory, micro_batches),
                **update_figures(scores, advantages, updates, self.policy.with_kl), "seconds": clock.laps}

    def judge(self, latents, prompts, frames):
        """Decodes latents and asks the rewards, batch by batch; functions that wait for Scores (leaders only)."""
        if not self.mesh.is_leader:
            return []
        waiting = []
        for rows in batches(len(prompts), self.config.rollout.batch_size):
            clips = np.stack([self.decoder(latents[row], frames) for row in rows])
            waiting.append(self.reward.submit(clips, [prompts[row] for row in rows]))
        return waiting

    def gather_scores(self, waiting, count):
        """The Scores of all processes' videos, in the order of ranks, on every process.

        `waiting`: of `judge`. `count`: videos of each process.
        """
        mine = Scores.joined(wait() for wait in waiting) if self.mesh.is_leader else None
        if self.mesh.size == 1:
            return mine
        names = self._part_names(mine)
        rows = np.zeros((1, 1 + len(names) + len(self.config.rewards), count), np.float64)
        if mine is not None:
            rows[0, 0] = mine.total
            rows[0, 1 : 1 + len(names)] = [mine.parts.get(name, np.full(count, np.nan)) for name in names]
            rows[0, 1 + len(names) :, 0] = [mine.failed[section.name] for section in self.config.rewards]
        # NaN survives no sum of slots, so it travels as a number no reward may have.
        sent = Tensor(np.nan_to_num(rows, nan=_NO_REWARD).astype(np.float32))
        received = self._gather(sent, "rewards").asnumpy().astype(np.float64)
        leaders = received[:: self.mesh.video_group.size]
        values = np.where(leaders == np.float32(_NO_REWARD), np.nan, leaders)
        joined = values.transpose(1, 0, 2).reshape(values.shape[1], -1)
        failed = values[:, 1 + len(names) :, 0].sum(0).astype(int)
        return Scores(joined[0], dict(zip(names, joined[1:], strict=False)),
                      {section.name: int(n) for section, n in zip(self.config.rewards, failed, strict=True)},
                      mine.messages if mine else ())

    def _part_names(self, mine):
        """Names of all parts, known on leaders, told to the others."""
        text = json.dumps(list(mine.parts)) if mine is not None else ""
        encoded = np.zeros((1, _NAME_BYTES), np.float32)
        data = text.encode()[:_NAME_BYTES]
        encoded[0, : len(data)] = list(data)
        first = self._gather(Tensor(encoded), "names").asnumpy()[0]
        return json.loads(bytes(first[first > 0].astype(np.uint8)).decode())

    def _roll_out(self, schedule, iteration, videos, groups, chosen):
        seed, shape = self.config.seed, self.config.latent_shape
        starts = {group: group_noise(shape, seed, iteration, group) for group in dict.fromkeys(groups)}
        texts = {group: self.texts[self.prompts[chosen[group]]] for group in starts}

        def draw(row, step):
            return step_noise(shape, seed, iteration, videos[row], step)

        return self.rollout(schedule, starts, groups, texts, self._negative, draw)

    def _score(self, experience, all_used, iteration):
        """Micro-batches with old log-probabilities and the frozen network's means, on the training path."""
        mesh, policy = self.mesh, self.policy
        planned = plan_micro_batches(all_used, mesh.data_rank, mesh.data_size, len(experience.levels),
                                     self.config.policy.micro_batch_size, self.config.seed, iteration)
        return score(policy.step_log_prob, experience, planned, policy.adapters, policy.with_kl)

    def _update(self, experience, micro_batches, iteration):
        """Optimiser steps on an iteration's experience; one dict of figures and arrays for each."""
        policy, made = self.config.policy, []
        rate = self.learning_rate(iteration)
        set_learning_rate(self.optimizer, rate)
        for epoch in range(policy.inner_epochs if micro_batches else 0):
            dealt = minibatches_of_epoch(micro_batches, policy.minibatches, self.config.seed, iteration, epoch)
            for minibatch in dealt:
                gradients = self.step.gradients(loss_inputs(experience, minibatch, self.mesh.data_size, not made))
                real = np.stack([batch.real for batch in minibatch])
                ratios, kls, log_probs = (values[real] for values in self.step.take())
                old = np.stack([batch.old_log_probs for batch in minibatch])[real]
                self._check_finite(gradients, iteration)
                factor = self.clipper(gradients.norm)
                self.step.update(gradients, factor, self.updates_done)
                self.updates_done += 1
                made.append({"loss": gradients.loss, "norm": gradients.norm, "factor": factor, "rate": rate,
                             "ratios": ratios, "kls": kls, "clip": policy.clip,
                             "rescoring": float(np.abs(log_probs - old).max(initial=0))})
        return made

    def _check_finite(self, gradients, iteration):
        if gradients.bad_ranks:
            self.store.wait()
            raise FloatingPointError(f"iteration {iteration + 1}: loss or gradient is not finite on rank "
                                     f"{', '.join(map(str, gradients.bad_ranks))}; no weight was changed by it")

    def save(self):
        """Starts to save a checkpoint of the iterations done."""
        if self.mesh.rank:
            return
        done = self.iterations_done
        state = {"iteration": done, "updates": self.updates_done, "random": {"seed": self.config.seed},
                 **run_state(self.config, self.identity), **self.state.json_state()}
        self.store.save(done, self.state.copy_to_host(), state)

    @property
    def _negative(self):
        return self.texts[self.config.sampling.negative_prompt]

    def _build_step(self):
        config, adapters = self.config, self.policy.adapters
        section, clipping = config.optimizer, config.clipping
        self.learning_rate = make_schedule(config.lr_schedule, config.runner_config.iterations)
        self.optimizer = make_optimizer(adapters.parameters, betas=section.betas, eps=section.eps,
                                        weight_decay=section.weight_decay)
        names = [parameter.name for parameter in self.optimizer.parameters]
        self.ema = Ema(self.optimizer.parameters, config.ema.decay, config.ema.warm_up)
        self.clipper = AdaptiveClipper(clipping.decay, clipping.deviations, clipping.start)
        self.state = TrainState(names, self.optimizer, self.ema, self.clipper, self.policy.sharded, self.mesh)
        self.step = PolicyStep(self.policy.loss, self.optimizer, self.ema, self.runtime, self.mesh,
                               self.policy.sharded)

    def _resume(self, checkpoint):
        self.state.restore(checkpoint)
        self.iterations_done, self.updates_done = checkpoint.step, checkpoint.state["updates"]
        if self.speaks:
            print(f"resuming after iteration {checkpoint.step} from {checkpoint.path}", flush=True)

    def _embed(self, texts):
        """{text: embedding fp32 [text_len, text_dim]}, made once before the transformer is loaded."""
        model, texts = self.config.model, list(dict.fromkeys(texts))
        encode = TextEncoder(model.text_encoder, model.dit.text_len, self.runtime)
        embeddings = {text: pad_text(rows, model.dit.text_len)
                      for text, rows in zip(texts, encode(texts), strict=True)}
        del encode
        release_memory()
        return embeddings

    def _identity(self):
        """What a checkpoint depends on beside the configuration, see training/resume.py."""
        model = self.config.model
        files = sorted(Path(model.text_encoder.tokenizer).iterdir())
        return {
            "contents of prompt_file": fingerprint.of_values(self.prompts),
            "contents of model.text_encoder.tokenizer": fingerprint.of_files(files),
            **{f"contents of model.{name}.checkpoint": fingerprint.of_checkpoint(getattr(model, name).checkpoint)
               for name in ("dit", "vae", "text_encoder")},
        }

    def _write_adapters(self):
        """The trained adapters and their average in PEFT's format."""
        values = {"adapter": None, "adapter_ema": self.ema.averages}
        paths = []
        for name, chosen in values.items():
            arrays = self.policy.adapters.arrays(chosen)
            paths += write_adapter(self.folder / name, self.config.lora, arrays, overwrite=True)[1:]
        with atomic_path(self.folder / "configuration.json") as path:
            path.write_text(json.dumps(dataclasses.asdict(self.config), indent=1) + "\n", encoding="utf-8")
        return paths


def _disagreement(trajectory, micro_batches):
    """Largest difference between the rollout's log-probabilities and those of the training path."""
    differences = [np.abs(trajectory.log_probs[batch.steps, batch.videos] - batch.old_log_probs)[batch.real]
                   for batch in micro_batches]
    return float(max((d.max() for d in differences if d.size), default=0.0))


class _Clock:
    """Seconds of the parts of an iteration."""

    def __init__(self):
        self.laps = {}
        self._last = time.perf_counter()

    def lap(self, name):
        """Ends a part."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


_NO_REWARD = -3e38
_NAME_BYTES = 4096
