"""Mix-GRPO (arXiv 2507.21802): iterations of rollout, rewards and policy update on this process.

The pieces are elsewhere: rollout, rewards, advantages, update, evaluation; checkpoints, optimiser and averages are
those of training/. Videos of an iteration are numbered through its groups; every process that shares no video with
another works on consecutive ones. All random draws are functions of the seed, the iteration and the video.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from ospnext_ms.config.resuming import POST_TRAIN_MAY_CHANGE
from ospnext_ms.diffusion.flow import inference_sigmas
from ospnext_ms.diffusion.windows import window_start
from ospnext_ms.generation.coders import FrameDecoder, embed_texts
from ospnext_ms.generation.prompt_sampler import PromptSampler
from ospnext_ms.generation.prompts import read_prompts
from ospnext_ms.parallel.agreement import Highest
from ospnext_ms.parallel.interruption import Interruption
from ospnext_ms.post_training.advantages import Lessons, group_advantages
from ospnext_ms.post_training.evaluation import Evaluation
from ospnext_ms.post_training.figures import update_figures
from ospnext_ms.post_training.judging import Judge
from ospnext_ms.post_training.policy_network import Policy
from ospnext_ms.post_training.rewards.combined import CombinedReward
from ospnext_ms.post_training.rollout import Rollout, group_noise, step_noise
from ospnext_ms.post_training.schedule import rollout_schedule
from ospnext_ms.post_training.shares import check_evaluation, check_shares, prompts_of_iteration, share
from ospnext_ms.post_training.update import (
    Experience,
    levels_of,
    loss_inputs,
    minibatches_of_epoch,
    plan_micro_batches,
    score,
)
from ospnext_ms.reporting.clock import StageClock, StepClock
from ospnext_ms.reporting.curves import draw_rewards
from ospnext_ms.reporting.metrics import has_figure
from ospnext_ms.reporting.monitor import Monitor
from ospnext_ms.reporting.profile import StepProfile
from ospnext_ms.reporting.progress import iteration_line
from ospnext_ms.storage import fingerprint
from ospnext_ms.training.adapters import AdapterFiles, start_fingerprint
from ospnext_ms.training.learner import Learner
from ospnext_ms.training.resume import leave, open_run, run_state
from ospnext_ms.training.validation import Validation, prompts_of


class PolicyTrainer:
    """One run of `post-train` on this process.

    Args:
        config: PostTrainConfig. runtime: runtime.Runtime. mesh: parallel.mesh.Mesh.
        interruption: Interruption, None where signals are somebody else's.

    Raises:
        FileNotFoundError, ValueError: something the configuration names is not there or does not fit.
        RewardError: a reward cannot be made.
    """

    def __init__(self, config, runtime, mesh, interruption=None):
        self.config, self.runtime, self.mesh = config, runtime, mesh
        self.interruption = interruption or Interruption()
        self._highest = Highest(mesh.world_group)
        self.folder = Path(config.output_dir)
        self.prompts = read_prompts(config.prompt_file)
        held_out = read_prompts(config.evaluation.prompt_file)
        check_shares(config.rollout.prompts, config.rollout.group_size, mesh.data_size)
        check_evaluation(config.evaluation.count, mesh.data_size)
        self.identity = self._identity()
        self.store, resumed = open_run(config, runtime, self.identity, POST_TRAIN_MAY_CHANGE, mesh,
                                       beside=_read_once(config, held_out))
        self.reward = CombinedReward(config.rewards)
        if mesh.is_leader:
            self.reward.start()
        watched = prompts_of(config.validation) if config.validation else []
        self.texts = embed_texts(config.model, [*self.prompts, *held_out, *watched, config.sampling.negative_prompt],
                                 runtime)
        self.policy = Policy(config, runtime, mesh, None if resumed else config.lora.checkpoint)
        decoder = FrameDecoder(config.model.vae, runtime.compiled) if mesh.is_leader else None
        self.judge = Judge(mesh, decoder, self.reward, config.rollout.batch_size)
        self.rollout = Rollout(self.policy.velocity, config.rollout.batch_size, config.rollout.rest_sampler)
        self.learner = Learner(config, self.policy.adapters.named_parameters, self.policy.loss,
                               config.runner_config.iterations, runtime, mesh, self.policy.sharded)
        self.adapters = AdapterFiles(self.policy.adapters, self.learner.state)
        sample = self._sampler()
        self.evaluation = Evaluation(config, held_out, mesh, sample, self.judge, decoder)
        self.validation = config.validation and Validation(
            config.validation, {"sampling": asdict(config.sampling), "video": asdict(config.video)}, config.video,
            config.latent_shape, config.output_dir, sample, decoder, mesh)
        self.lessons = Lessons(config.policy.equal_rewards_limit)
        self.iterations_done = self.updates_done = 0
        if resumed:
            self._resume(resumed)

    def _sampler(self):
        """The ODE of the whole schedule, for prompts that are not learned from."""
        sampling, rollout = self.config.sampling, self.rollout
        sigmas = inference_sigmas(sampling.steps, sampling.shift)
        return PromptSampler(lambda x, text, negative: rollout.follow(x, sigmas, text, negative, "euler"), self.texts,
                             sampling.negative_prompt, rollout.batch_size)

    def run(self):
        """Runs the iterations that are left; returns the paths of what there is to look at.

        Raises:
            SystemExit: a signal asked for an end; the iteration it came in is done and saved.
        """
        config, total = self.config, self.config.runner_config.iterations
        monitor = None
        if self.mesh.reports:
            monitor = Monitor(config, total, self.iterations_done, iteration_line, draw_rewards,
                              about=self.runtime.about(self.mesh.size))
        try:
            if monitor:
                monitor.say(self.store.check_space(self.learner.state.nbytes + self.adapters.nbytes))
            is_due = self._is_missing_an_evaluation()
            is_unseen = self.validation and self.validation.is_missing(self.iterations_done, total)
            if self.iterations_done == total and not is_due and not is_unseen and monitor:
                monitor.say(f"nothing to do: all {total} iterations are done")
            self.interruption.begin()
            if is_due and self.iterations_done < total:
                self.evaluation(self.iterations_done, self.learner.ema, monitor)
            if is_unseen:
                self.validation(self.iterations_done, self.learner.ema, monitor)
            clock = StepClock(total - self.iterations_done)
            profile = StepProfile(config.callbacks.profile, self.folder, self.mesh.rank, monitor and monitor.say)
            for iteration in profile.steps(self.iterations_done + 1, range(self.iterations_done, total)):
                figures, stages = self.iterate(iteration)
                profile.take({name.removeprefix("seconds/"): seconds for name, seconds in stages.items()})
                figures |= {"iteration_seconds": clock.tick(), **stages}
                self.iterations_done += 1
                done = self.iterations_done
                if monitor:
                    monitor.step(done, figures, clock.seconds_left)
                warning = self.lessons(done, figures)
                if warning and monitor:
                    monitor.say(warning)
                asked = self._highest(self.interruption.asked) if done < total else 0
                if done % config.callbacks.save_checkpoint_steps == 0 or done == total or asked:
                    self.save()
                if asked:
                    leave(asked, f"iteration {done}", self.store, self._highest, monitor, self.reward.close)
                self.store.look()
                is_due = done == total or self._evaluation_is_due()
                if is_due and done < total:
                    self.evaluation(done, self.learner.ema, monitor)
                is_unseen = self.validation and self.validation.is_due(done, total)
                if is_unseen:
                    self.validation(done, self.learner.ema, monitor)
                if is_unseen or is_due and done < total:
                    clock.skip()
            self.store.wait()
            # Before the last evaluation: what was learned is not lost where that fails.
            paths = self.adapters.write(self.folder) if monitor else []
            if is_due:
                self.evaluation(total, self.learner.ema, monitor)
            return [*paths, *monitor.close()] if monitor else []
        finally:
            self.reward.close()

    def iterate(self, iteration):
        """One iteration; its figures, and the seconds of its stages, {name: number} both."""
        config, clock = self.config, StageClock()
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
        clock.end("rollout")
        waiting = self.judge.submit(trajectory.latents, prompts, config.rollout.reward_frames)
        clock.end("decoding")
        scores = self.judge.gather(waiting, len(videos))
        clock.end("waiting_for_rewards")
        all_groups = np.arange(config.rollout.prompts * config.rollout.group_size) // config.rollout.group_size
        advantages = group_advantages(scores.total, all_groups, config.policy.advantage_limit)
        texts = np.stack([self.texts[prompt] for prompt in prompts])
        experience = Experience(trajectory.samples, texts, self._negative, levels_of(schedule),
                                advantages.values[videos])
        micro_batches = self._score(experience, advantages.used, iteration)
        clock.end("scoring")
        updates = self._update(experience, micro_batches, iteration)
        clock.end("update")
        figures = {"window_start": start, "log_prob_disagreement": _disagreement(trajectory, micro_batches),
                   **update_figures(scores, advantages, updates, self.policy.with_kl)}
        return figures, clock.figures

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
        for epoch in range(policy.inner_epochs if micro_batches else 0):
            dealt = minibatches_of_epoch(micro_batches, policy.minibatches, self.config.seed, iteration, epoch)
            for minibatch in dealt:
                inputs = loss_inputs(experience, minibatch, self.mesh.data_size, not made)
                gradients = self.learner.gradients(inputs)
                real = np.stack([batch.real for batch in minibatch])
                ratios, kls, log_probs = (values[real] for values in gradients.auxiliaries)
                old = np.stack([batch.old_log_probs for batch in minibatch])[real]
                figures = self._change(gradients, iteration)
                made.append({"loss": gradients.loss, "norm": gradients.norm, "factor": figures["clip_factor"],
                             "rate": figures["learning_rate"], "ratios": ratios, "kls": kls, "clip": policy.clip,
                             "rescoring": float(np.abs(log_probs - old).max(initial=0))})
        return made

    def _change(self, gradients, iteration):
        try:
            figures = self.learner.update(gradients, iteration, self.updates_done)
        except FloatingPointError as error:
            self.store.wait()
            raise FloatingPointError(f"iteration {iteration + 1}: {error}") from error
        self.updates_done += 1
        return figures

    def save(self):
        """Starts to save a checkpoint of the iterations done."""
        if not self.mesh.reports:
            return
        done = self.iterations_done
        state = {"iteration": done, "updates": self.updates_done, "random": {"seed": self.config.seed},
                 **run_state(self.config, self.identity), **self.learner.state.json_state()}
        self.store.save(done, self.learner.state.copy_to_host(), state, self.adapters.copy())

    def _evaluation_is_due(self):
        every, done = self.config.evaluation.every, self.iterations_done
        return done in (0, self.config.runner_config.iterations) or bool(every and done % every == 0)

    def _is_missing_an_evaluation(self):
        """Whether an evaluation is due at this iteration which the run that was stopped has not made."""
        if not self._evaluation_is_due():
            return False
        made = self.mesh.reports and has_figure(self.folder, self.iterations_done, "eval/reward")
        return not self._highest(int(made))

    @property
    def _negative(self):
        return self.texts[self.config.sampling.negative_prompt]

    def _resume(self, checkpoint):
        self.learner.state.restore(checkpoint)
        self.iterations_done, self.updates_done = checkpoint.step, checkpoint.state["updates"]
        if self.mesh.reports:
            print(f"resuming after iteration {checkpoint.step} from {checkpoint.path}", flush=True)

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


def _disagreement(trajectory, micro_batches):
    """Largest difference between the rollout's log-probabilities and those of the training path."""
    differences = [np.abs(trajectory.log_probs[batch.steps, batch.videos] - batch.old_log_probs)[batch.real]
                   for batch in micro_batches]
    return float(max((d.max() for d in differences if d.size), default=0.0))


def _read_once(config, held_out):
    """{name: hash} of what a run reads beside what it depends on; an adapter that is gone is no matter to a resumed
    one."""
    watched = config.validation and prompts_of(config.validation)
    return {"contents of evaluation.prompt_file": fingerprint.of_values(held_out),
            "contents of validation.prompts": watched and fingerprint.of_values(watched),
            "contents of lora.checkpoint": start_fingerprint(config.lora)}
