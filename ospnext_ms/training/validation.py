"""Videos of a few prompts while a run goes on: those of a step on a sheet, those of all steps on a film strip.

Nothing of it draws from a generator that training draws from, and the weights come back bit by bit.
"""

import json
import time
from pathlib import Path

import numpy as np

from ospnext_ms.data.pictures import contact_sheet, evenly_spaced, read_png, thumbnail, write_png
from ospnext_ms.data.video import iterate_video, write_mp4
from ospnext_ms.diffusion.integrate import guided, integrate
from ospnext_ms.diffusion.sampler import make_sampler
from ospnext_ms.generation.folder import Folder
from ospnext_ms.generation.jobs import Job, index_name
from ospnext_ms.generation.noise import starting_noise
from ospnext_ms.generation.overviews import write_overviews
from ospnext_ms.generation.prompts import read_prompts
from ospnext_ms.parallel.agreement import Highest
from ospnext_ms.storage.files import atomic_path

FOLDER, FILM_STRIP, RECORD, _MIDDLE_FRAMES = "validation", "film_strip.png", "validation.json", "middle_frames.png"
# More rows nobody can look at; of longer runs so many steps are shown, evenly spaced.
MAX_ROWS = 64


def prompts_of(section):
    """The prompts of a WatchedPromptsSection, a list; raises as generation.prompts.read_prompts."""
    return read_prompts(section.prompts) if isinstance(section.prompts, str) else list(section.prompts)


def follow_ode(velocity, section):
    """What a PromptSampler follows: Euler steps of a network's `velocity`, as a GuidedStepsSection says."""
    def follow(noise, text, negative):
        guide = guided(velocity, text, None if section.guidance == 1 else negative, section.guidance)
        return integrate(guide, make_sampler("euler", section.steps, section.shift), noise)

    return follow


class Validation:
    """Makes OUTPUT_DIR/validation/step_N with the videos, a contact sheet, a grid and, last, validation.json, which
    says what they are; and film_strip.png beside it, a row for each step and a column for each prompt.

    The data axis shares the prompts. All processes make as many calls of the network, because weights may be spread
    over processes that work on different videos.

    Args:
        section: WatchedPromptsSection. settings: all else that decides how a video looks, JSON values.
        video: VideoSection. shape: [16, T, h, w] of a latent. output_dir: of the run.
        sample: generation.prompt_sampler.PromptSampler. decode: latent -> frames uint8 [F, H, W, 3], None on processes
            that do not decode. mesh: parallel.mesh.Mesh.
    """

    def __init__(self, section, settings, video, shape, output_dir, sample, decode, mesh):
        self.section, self.video, self.shape = section, video, shape
        self.prompts = prompts_of(section)
        self.folder = Path(output_dir) / FOLDER
        self.sample, self.decode, self.mesh = sample, decode, mesh
        self.jobs = [Job(prompt, index_name(i), section.seed, i) for i, prompt in enumerate(self.prompts)]
        self._settings = json.loads(json.dumps({**settings, "prompts": self.prompts, "seed": section.seed}))
        self._highest = Highest(mesh.world_group)

    def is_due(self, done, total):
        """Whether it is due after `done` of `total` steps."""
        every = self.section.every
        return done in (0, total) or bool(every and done % every == 0)

    def is_missing(self, done, total):
        """Whether it is due now, where a run starts or goes on, and has not been made; all processes call it."""
        made = bool(done) and self.mesh.reports and self._is_made(done)
        return self.is_due(done, total) and not self._highest(int(made))

    def __call__(self, step, ema, monitor):
        """Makes the videos of `step` with the averages of `ema`; `monitor` is None on processes that do not report."""
        began, folder = time.perf_counter(), Folder(self._folder_of(step))
        count, size = len(self.jobs), self.mesh.data_size
        mine = [self.mesh.data_rank + turn * size for turn in range(-(-count // size))]
        # Who has none left repeats the last one, for the others' sake.
        jobs = [self.jobs[min(i, count - 1)] for i in mine]
        with ema.in_place():
            latents = self.sample([job.prompt for job in jobs],
                                  lambda i: starting_noise(self.shape, jobs[i].seed, jobs[i].index))
        is_finite = np.isfinite(latents).all()
        for job, latent, i in zip(jobs, np.nan_to_num(latents), mine, strict=True):
            if i < count and self.decode is not None:
                frames = self.decode(latent)
                if self.mesh.is_leader:
                    write_mp4(folder.video(job), frames, self.video.fps, self.video.crf)
        # Until all have written.
        are_bad = self._highest(int(not is_finite))
        if monitor:
            if are_bad:
                monitor.say(f"validation at {step}: the averaged weights give latents that are not finite")
            self._report(step, folder, monitor)
            monitor.record(step, {"seconds/validation": round(time.perf_counter() - began, 3)})

    def _report(self, step, folder, monitor):
        sheet, *grid = write_overviews(folder, self.jobs, self.video)
        middle = [thumbnail(_middle_frame(folder.video(job), self.video.frames)) for job in self.jobs]
        write_png(folder.records / _MIDDLE_FRAMES, np.concatenate(middle, axis=1))
        with atomic_path(folder.records / RECORD) as path:
            path.write_text(json.dumps({"step": step, **self._settings}, ensure_ascii=False, indent=1) + "\n",
                            encoding="utf-8")
        strip = self._draw_film_strip(step)
        for name, picture in (("contact_sheet", sheet), ("film_strip", strip)):
            monitor.picture(step, f"{FOLDER}/{name}", picture)
        for path in grid or [folder.video(self.jobs[0])]:
            monitor.video(step, f"{FOLDER}/videos", path)
        monitor.say(f"validation at {step}: {sheet}, {strip.name}")

    def _draw_film_strip(self, last):
        """Draws what has been made up to step `last` with these settings; returns the picture's path."""
        steps = sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*[0-9]"))
        made = [step for step in steps if step <= last and self._is_made(step)]
        rows, captions = [], []
        for step in (made[i] for i in evenly_spaced(len(made), MAX_ROWS)):
            frames = read_png(self._folder_of(step) / _MIDDLE_FRAMES)
            if frames is not None:
                rows.append(np.split(frames, len(self.prompts), axis=1))
                captions.append(str(step))
        path = self.folder / FILM_STRIP
        write_png(path, contact_sheet(rows, captions, len(self.prompts), self.prompts))
        return path

    def _folder_of(self, step):
        return self.folder / f"step_{step:08d}"

    def _is_made(self, step):
        try:
            record = json.loads((self._folder_of(step) / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return record == {"step": step, **self._settings}


def _middle_frame(path, frames):
    return next(frame for i, frame in enumerate(iterate_video(path)) if i == frames // 2)
