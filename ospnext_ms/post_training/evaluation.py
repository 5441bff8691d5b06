"""Held-out prompts, sampled as `generate` samples them: ODE, the averaged adapters, the same noise every time."""

import json
from pathlib import Path

import numpy as np

from ospnext_ms.data.pictures import contact_sheet, write_png
from ospnext_ms.data.video import write_mp4
from ospnext_ms.generation.overviews import SHEET_COLUMNS
from ospnext_ms.post_training.shares import share
from ospnext_ms.storage.files import atomic_path

_NOISE_STREAM = 0xE7A1


class Evaluation:
    """Evaluates a policy at given iterations, and compares with the first time.

    Writes evaluation/NUMBER/ with scores.json (every video's, so that runs can be compared pair by pair), a contact
    sheet and the first videos.

    Args:
        config: PostTrainConfig. prompts: held-out ones. mesh: parallel.mesh.Mesh.
        sample: generation.prompt_sampler.PromptSampler. judge: Judge. decoder: generation.coders.FrameDecoder, used
            where it is reported only.
    """

    def __init__(self, config, prompts, mesh, sample, judge, decoder):
        self.config = config
        self.sample, self.judge, self.decoder = sample, judge, decoder
        self.folder = Path(config.output_dir) / "evaluation"
        count, data_size = config.evaluation.count, mesh.data_size
        self.prompts = [prompts[i % len(prompts)] for i in range(count)]
        self.mine = list(share(count, mesh.data_rank, data_size))

    def __call__(self, iteration, ema, monitor):
        """Samples with the averages of `ema` and judges; `monitor` is None on processes that do not report.

        Returns the Scores of all videos.
        """
        section = self.config.evaluation
        prompts = [self.prompts[i] for i in self.mine]
        with ema.in_place():
            latents = self.sample(prompts, lambda i: self._noise(self.mine[i]))
        frames = self.config.rollout.reward_frames if section.fewer_frames else None
        scores = self.judge.gather(self.judge.submit(latents, prompts, frames), len(prompts))
        if monitor:
            self._report(iteration, scores, latents, monitor)
        return scores

    def _noise(self, index):
        rng = np.random.default_rng([self.config.evaluation.seed, _NOISE_STREAM, index])
        return rng.standard_normal(self.config.latent_shape, dtype=np.float32)

    def _report(self, iteration, scores, latents, monitor):
        folder = self.folder / f"{iteration:06d}"
        figures = _mean_and_error(scores)
        if figures["eval/reward"] is None:
            monitor.say(f"no held-out video has a reward: {'; '.join(scores.messages[:1])}")
        record = {"iteration": iteration, "prompts": self.prompts, "total": _plain(scores.total),
                  "parts": {name: _plain(values) for name, values in scores.parts.items()}}
        with atomic_path(folder / "scores.json") as path:
            path.write_text(json.dumps(record) + "\n", encoding="utf-8")
        if sheet := self._write_videos(folder, latents):
            monitor.picture(iteration, "evaluation/contact_sheet", sheet)
        if iteration:
            figures |= self._rise_since_the_beginning(record, monitor)
        monitor.record(iteration, figures)
        mean, error = figures["eval/reward"], figures["eval/standard_error"]
        monitor.say(f"iteration {iteration}: held-out reward {'unknown' if mean is None else f'{mean:.4f}'}"
                    + ("" if error is None else f" +- {error:.4f}"))
        if "eval/rise" in figures:
            monitor.say(f"rise since the beginning {figures['eval/rise']:+.4f} +- {figures['eval/rise_error']:.4f} "
                        f"({figures['eval/rise'] / max(figures['eval/rise_error'], 1e-12):.1f} standard errors, "
                        f"{len(scores.total)} videos, same noise)")

    def _rise_since_the_beginning(self, record, monitor):
        """Figures of `compare` with iteration 0; none where that was not made, or cannot be read (which is said)."""
        path = self.folder / f"{0:06d}" / "scores.json"
        try:
            return compare(json.loads(path.read_text(encoding="utf-8")), record) if path.is_file() else {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            monitor.say(f"{path} cannot be read, so nothing is compared with it: {error!r}")
            return {}

    def _write_videos(self, folder, latents):
        """The contact sheet's path, None where no videos are kept."""
        video, shown = self.config.video, min(self.config.evaluation.videos, len(latents))
        clips = [self.decoder(latent) for latent in latents[:shown]]
        for i, clip in enumerate(clips):
            write_mp4(folder / f"video_{i:04d}.mp4", clip, video.fps, video.crf)
        if not clips:
            return None
        write_png(folder / "contact_sheet.png", contact_sheet(clips, self.prompts[:shown], SHEET_COLUMNS))
        return folder / "contact_sheet.png"


def _mean_and_error(scores):
    """Figures of the videos that have a reward, None where too few have one."""
    valid = scores.total[~np.isnan(scores.total)]
    figures = {"eval/reward": float(valid.mean()) if len(valid) else None,
               "eval/standard_error": float(valid.std(ddof=1) / np.sqrt(len(valid))) if len(valid) > 1 else None,
               "eval/without_a_reward": len(scores.total) - len(valid)}
    for name, values in scores.parts.items():
        known = values[~np.isnan(values)]
        figures[f"eval/{name}"] = float(known.mean()) if len(known) else None
    return figures


def _plain(values):
    """Numbers for JSON, which has no NaN: None stands for it."""
    return [None if np.isnan(value) else float(value) for value in values]


def compare(before, after):
    """{"eval/rise", "eval/rise_error"}: mean and standard error of the paired differences, and of every part."""
    figures = _rise(before["total"], after["total"], "eval/rise")
    for name in before["parts"].keys() & after["parts"].keys():
        figures |= _rise(before["parts"][name], after["parts"][name], f"eval/rise/{name}")
    return figures


def _rise(before, after, name):
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    differences = differences[~np.isnan(differences)]
    if len(differences) < 2:
        return {}
    return {name: float(differences.mean()),
            f"{name}_error": float(differences.std(ddof=1) / np.sqrt(len(differences)))}
