"""A run reduced to what decides its size, whatever kind of run it is."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.post_train import PostTrainConfig
from ospnext_ms.config.prepare_data import PrepareDataConfig, check_bucket
from ospnext_ms.config.reader import load_config
from ospnext_ms.config.sections import ParallelSection
from ospnext_ms.config.train import TrainConfig, TrainDatasetSection
from ospnext_ms.config.yaml_files import read_values
from ospnext_ms.data.cache import INDEX, Cache
from ospnext_ms.models.config import DiTConfig, UMT5Config, VAEConfig
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.models.sizes import latent_size, video_size
from ospnext_ms.parallel.degrees import check_generation, check_parallel
from ospnext_ms.storage import peft_format

RUN_MODES = {"generate": GenerateConfig, "train": TrainConfig, "finetune": TrainConfig, "post_train": PostTrainConfig}
# 720P, 5 seconds: what OSP-Next is made for (arXiv 2605.28691).
DEFAULT_VIDEO = (720, 1280, 81)
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Workload:
    """One network on one size of video on a number of processes.

    Args:
        run_mode: of the configuration. dit: DiTConfig. text_encoder, vae: their configurations, or None where the run
            has none. vae_tile: pixels of a tile that is decoded at once, None for whole frames.
        video: (height, width, frames); notes: assumptions the reader should know.
        batch: samples that go through the network at once. batches: of them a step, on a process. forwards: calls of
            the network a sample and step, that is 2 for guidance.
        compute, residual, stored: bytes of a value in products, in the residual stream, in the stored weights.
        flash: attention keeps no scores (on Ascend). trained: "all", "lora" or None.
        parallel: ParallelSection, data_parallel being a number. ema, recompute: whether there is one.
        watched: what makes the videos of validation, None where there are none.
        peak_tflops: of a device, or None. groups_per_video: 2 where each branch of guidance has devices of its own.
        adapter_values: numbers in the adapters that are used beside the weights, not trained.
        offload: the blocks' weights stay on the host and come to the device in turn.
    """

    run_mode: str
    dit: DiTConfig
    text_encoder: UMT5Config | None
    video: tuple[int, int, int]
    notes: tuple[str, ...]
    batch: int
    batches: int
    forwards: int
    compute: int
    residual: int
    stored: int
    flash: bool
    trained: str | None
    lora: LoRAConfig | None
    parallel: ParallelSection
    ema: bool
    recompute: bool
    peak_tflops: float | None
    groups_per_video: int = 1
    adapter_values: int = 0
    offload: bool = False
    vae: VAEConfig | None = None
    vae_tile: int | None = None
    watched: "Workload | None" = None

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W) tokens."""
        frames, height, width = latent_size(*self.video)
        patch = self.dit.patch_size
        return (frames, height // patch[1], width // patch[2])

    @property
    def switched(self) -> int:
        """Bytes of a value in what a switch between token and group blocks sends."""
        dtype = self.parallel.switch_dtype
        return BYTES[dtype] if dtype else self.residual

    @property
    def degree(self) -> int:
        """Processes that share a video."""
        return self.parallel.skiparse_parallel * self.parallel.ulysses_parallel

    @property
    def data_parallel(self) -> int:
        """Groups of processes that work on different videos."""
        return _data_parallel(self.parallel)

    @property
    def devices(self) -> int:
        """All processes."""
        return self.data_parallel * self.degree


def read_workload(path: str | Path, overrides: Iterable[str] = (), devices: int | None = None,
                  video: tuple[int, int, int] | None = None) -> Workload:
    """The Workload of any YAML file of this package that runs a network.

    Args:
        devices: number of processes; where it is None and the file leaves data_parallel open, the least that the
            other degrees allow. video: (height, width, frames) instead of what the file or its data say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a configuration that cannot be run, or of a run_mode that has no network to plan for.
    """
    # Without a run_mode, the reader of any says that it is missing.
    mode = read_values(path)[0].get("run_mode", "train")
    if mode not in list(RUN_MODES):
        raise ValueError(f"{path} is for run_mode {mode!r}; plan knows {', '.join(RUN_MODES)}")
    values = {"prompts.prompt": "any", "prompts.prompt_file": None} if mode == "generate" else {}
    config = load_config(RUN_MODES[mode], path, overrides, values)
    if video is not None:
        check_bucket(video)
    parallel = _parallel(config, devices)
    if mode in ("generate", "post_train"):
        return {"generate": _generation, "post_train": _post_training}[mode](config, parallel, video)
    prepared_by = sorted((Path(path).parent.parent / "prepare_data").glob("*.yaml"))
    return _training(config, parallel, *_training_video(config.train_dataset, video, prepared_by))


def _parallel(config: GenerateConfig | TrainConfig | PostTrainConfig, devices: int | None) -> ParallelSection:
    section, dit = config.parallel_config, config.model.dit
    degree = section.skiparse_parallel * section.ulysses_parallel
    if devices is None:
        least = max(-(-section.parameter_shard // degree), _groups_per_video(section))
        devices = (section.data_parallel or least) * degree
    if isinstance(config, GenerateConfig):
        check_generation(config.parallel_config, dit, devices)
    else:
        check_parallel(section, dit, devices)
    return ParallelSection(data_parallel=devices // degree, skiparse_parallel=section.skiparse_parallel,
                           ulysses_parallel=section.ulysses_parallel, parameter_shard=section.parameter_shard,
                           switch_dtype=section.switch_dtype)


def _data_parallel(parallel: ParallelSection) -> int:
    """Of a section that `_parallel` has made, where all degrees are numbers."""
    assert parallel.data_parallel is not None
    return parallel.data_parallel


def _groups_per_video(section: ParallelSection) -> int:
    return 2 if getattr(section, "split_guidance", False) else 1


def _dtypes(config: GenerateConfig | TrainConfig | PostTrainConfig) -> tuple[str, bool, tuple[str, ...]]:
    """(compute dtype, whether attention is FlashAttentionScore, notes)."""
    context = config.context
    on_cpu = context.device_target == "CPU"
    dtype = context.dtype if context.dtype != "auto" else "fp32" if on_cpu else "bf16"
    notes = () if context.device_target != "auto" else ("context.device_target is auto: planned for Ascend",)
    return dtype, not on_cpu and dtype == "bf16", notes


def _quant_notes(dit: DiTConfig) -> tuple[str, ...]:
    if not (dit.quant or dit.quant_attention):
        return ()
    return ("dit.quant: weights that are not trained are planned in 8 bits, operands on their way there in fp32; "
            "backend auto is planned as native (Ascend 950); emulate shows what an emulation needs",)



def _training(config: TrainConfig, parallel: ParallelSection, video: tuple[int, int, int],
              note: tuple[str, ...]) -> Workload:
    dtype, flash, notes = _dtypes(config)
    dit, runner = config.model.dit, config.runner_config
    workload = Workload(
        run_mode=config.run_mode, dit=dit, text_encoder=None, video=video, notes=notes + note + _quant_notes(dit),
        batch=runner.batch_size, batches=runner.gradient_accumulation_steps, forwards=1, compute=BYTES[dtype],
        # What is trained is kept in fp32, what is frozen as it is computed with.
        residual=BYTES[dit.residual_dtype], stored=BYTES[dtype] if config.lora else 4, flash=flash,
        trained="lora" if config.lora else "all", lora=config.lora, parallel=parallel, ema=True,
        recompute=config.recompute_config.recompute, peak_tflops=runner.peak_tflops)
    if config.validation is None or config.model.vae is None:
        return workload
    section = config.validation.video
    watched = replace(workload, batch=1, video=(section.height, section.width, section.frames), vae=config.model.vae,
                      vae_tile=config.model.vae.tile_size)
    calls = config.validation.steps * (1 if config.validation.guidance == 1 else 2)
    told = (f"validation: {calls} calls of the network a video of {section.height}x{section.width}, {section.frames} "
            "frames; its memory is planned, its time is not")
    return replace(workload, watched=watched, notes=(*workload.notes, told))


def _training_video(data: TrainDatasetSection, video: tuple[int, int, int] | None,
                    prepared_by: Iterable[Path]) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """((height, width, frames), notes): what was asked for, or the largest of the data's, or the default.

    prepared_by: files of `prepare-data`, of which one may be that which is to make the data.
    """
    if video is not None:
        return video, ()
    if data.latent_size is not None:
        return video_size(*data.latent_size), ()
    assert data.path is not None, "kind cache has a path"
    if (Path(data.path) / INDEX).is_file():
        return _largest(Cache(data.path).buckets), (f"size of video: the largest bucket of {data.path}",)
    for path in prepared_by:
        config = load_config(PrepareDataConfig, path)
        if Path(config.output_dir) == Path(data.path):
            return _largest(config.clips.buckets), (f"size of video: the largest bucket of {path}",)
    return DEFAULT_VIDEO, (f"size of video: 720P, 5 s, as there is no cache at {data.path} yet; --video says another",)


def _largest(buckets: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
    return max(buckets, key=lambda bucket: bucket[0] * bucket[1] * bucket[2])


def _generation(config: GenerateConfig, parallel: ParallelSection, video: tuple[int, int, int] | None) -> Workload:
    dtype, flash, notes = _dtypes(config)
    size = (config.video.height, config.video.width, config.video.frames)
    groups = _groups_per_video(config.parallel_config)
    adapter_values, adapter_notes = _adapter_values(config)
    return Workload(
        run_mode=config.run_mode, dit=config.model.dit, text_encoder=config.model.text_encoder, vae=config.model.vae,
        vae_tile=config.model.vae.tile_size, video=video or size,
        notes=notes + _quant_notes(config.model.dit) + adapter_notes, batch=config.sampling.batch_size,
        batches=config.sampling.steps,
        forwards=(1 if config.sampling.guidance == 1 else 2) // groups, compute=BYTES[dtype], residual=BYTES["fp32"],
        stored=BYTES[dtype], flash=flash, trained=None, lora=None, parallel=parallel, ema=False, recompute=False,
        peak_tflops=None, groups_per_video=groups, adapter_values=adapter_values,
        offload=config.context.offload)


def _adapter_values(config: GenerateConfig) -> tuple[int, tuple[str, ...]]:
    """(numbers in the adapters, notes), of those adapters that are there: only their files say how large they are."""
    values, notes = 0, ()
    for folder, _ in config.used_adapters:
        try:
            values += peft_format.values_beside(folder)
        except FileNotFoundError:
            notes += (f"the adapter {folder} is not there and not counted",)
    return values, notes


def _post_training(config: PostTrainConfig, parallel: ParallelSection, video: tuple[int, int, int] | None) -> Workload:
    dtype, flash, notes = _dtypes(config)
    dit, size = config.model.dit, (config.video.height, config.video.width, config.video.frames)
    pairs = config.rollout.prompts * config.rollout.group_size * config.rollout.window.size
    batches = -(-pairs // (config.policy.minibatches * config.policy.micro_batch_size * _data_parallel(parallel)))
    notes += ("the policy update is planned; rollouts need less memory, rewards have processes of their own",)
    return Workload(
        run_mode=config.run_mode, dit=dit, text_encoder=config.model.text_encoder, vae=config.model.vae,
        vae_tile=config.model.vae.tile_size, video=video or size,
        notes=notes + _quant_notes(dit), batch=config.policy.micro_batch_size, batches=batches,
        forwards=1 if config.sampling.guidance == 1 else 2, compute=BYTES[dtype],
        residual=BYTES[dit.residual_dtype], stored=BYTES[dtype], flash=flash, trained="lora",
        lora=config.lora, parallel=parallel, ema=True, recompute=config.recompute_config.recompute, peak_tflops=None)
