"""What becomes of every command in the pages: it is run, another test runs it, or it cannot run here."""

# Scenarios: commands that tests/test_docs.py runs one after the other in a copy of the repository (slow). They are
# the pages' commands to the letter; what CHANGES says makes them short.
RUN = {
    "first steps": [
        "bash scripts/quickstart.sh",
        "bash scripts/quickstart.sh --prompt 'a dim small 0 drifting left slowly' --seed 4",
        "python -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml --prompt 'a bright 3 drifting left' "
        "--overwrite",
        "python -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml --prompt-file prompts.txt "
        "--set sampling.steps=30 --output output/prompts",
        "python -m ospnext_ms generate --config yaml_configs/generate/tiny_hif8.yaml",
        "python -m ospnext_ms calibrate-cache --config yaml_configs/generate/tiny.yaml --prompt-file prompts.txt "
        "--output output/calibration.json",
        "python -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml --output output/cached "
        "--set sampling.cache.calibration=output/calibration.json",
    ],
    "doctor": ["python -m ospnext_ms doctor"],
    "plan": [
        "python -m ospnext_ms plan --config yaml_configs/train/14b.yaml",
        "python -m ospnext_ms plan --config yaml_configs/train/14b.yaml --devices 64 --video 480 832 49",
        "python -m ospnext_ms plan --config yaml_configs/generate/14b.yaml --json",
        "python -m ospnext_ms plan --config yaml_configs/train/14b.yaml --device 910B",
        "python -m ospnext_ms plan --config yaml_configs/train/14b_lora.yaml",
        "python -m tools.experiments.seconds_on_paper",
    ],
    "convert": [
        "python tools/convert_checkpoint.py dit --source Wan2.1-T2V-1.3B --target checkpoints/dit",
        "python tools/convert_checkpoint.py vae --source Wan2.1_VAE.pth --target checkpoints/vae",
        "python tools/convert_checkpoint.py umt5 --source models_t5_umt5-xxl-enc-bf16.pth --target checkpoints/umt5",
        "python tools/convert_checkpoint.py dit --quant hif8 --source checkpoints/dit --target checkpoints/dit_hif8",
        "python tools/convert_checkpoint.py dit --quant hif8 --source tools/tiny_family/weights/dit_sparse.safetensors "
        "--target output/dit_hif8.safetensors",
        "python tools/convert_checkpoint.py lora --source ADAPTER --target FOLDER",
        "python tools/convert_checkpoint.py lora --source ADAPTER --merge-into DIT --target MERGED",
    ],
    "train": [
        "python -m tools.tiny_family.write_videos --output output/digits --count 512",
        "python -m tools.tiny_family.write_videos --output output/digits_held_out --count 16 --seed 1 --split held_out",
        "python -m ospnext_ms prepare-data --config yaml_configs/prepare_data/tiny.yaml",
        "python -m ospnext_ms prepare-data --config yaml_configs/prepare_data/tiny.yaml "
        "--set manifest=output/digits_held_out/manifest.jsonl --set output_dir=output/digits_held_out_cache",
        "python -m ospnext_ms train --config yaml_configs/train/tiny.yaml",
        "bash scripts/msrun.sh train yaml_configs/train/tiny.yaml 1 4 --set parallel_config.skiparse_parallel=4",
        "python -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml "
        "--output output/fine_tuned --set model.dit.checkpoint=output/train_tiny/checkpoints/step_00000400/ema",
        "python tools/convert_checkpoint.py dit --source output/train_tiny/checkpoints/step_00000400/ema "
        "--target dit.safetensors --direction mindspore-to-torch",
        "python -m ospnext_ms train --config yaml_configs/train/tiny_hif8.yaml",
        "python -m ospnext_ms train --config yaml_configs/train/tiny_watched.yaml",
        "python -m tools.experiments.save_overhead --config yaml_configs/train/tiny.yaml "
        "--set output_dir=output/overhead --set eval_dataset=null --set runner_config.steps=80 "
        "--set callbacks.save_checkpoint_steps=10",
    ],
    "adapters": [
        "bash tools/tiny_family/lora.sh output/lora",
        "python -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml "
        "--set adapter=output/lora/train/adapter_ema --output output/new_look",
    ],
    "post-train": [
        "python -m ospnext_ms post-train --config yaml_configs/post_train/tiny.yaml",
        "python -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml "
        "--set adapter=output/post_train_tiny/adapter_ema --output output/rewarded",
        "python -m ospnext_ms post-train --config yaml_configs/post_train/tiny.yaml --set seed=0",
        "python -m ospnext_ms post-train --config yaml_configs/post_train/tiny.yaml --set sampling.steps=3 "
        "--set rollout.window.size=2 --set rollout.prompts=2 --set evaluation.count=2 --set evaluation.videos=0 "
        "--set rollout.group_size=4 --set rollout.batch_size=8 --set policy.micro_batch_size=8 "
        "--set runner_config.iterations=8 --set policy.measure_kl=true --set seed=SEED "
        "--set policy.kl_weight=WEIGHT --set output_dir=output/kl_SEED_WEIGHT",
        "python -m ospnext_ms post-train --config yaml_configs/post_train/tiny.yaml --set rollout.prompts=2 "
        "--set evaluation.count=2 --set evaluation.videos=0 --set sampling.steps=8 --set runner_config.iterations=4 "
        "--set rollout.window.size=SIZE --set output_dir=output/window_SIZE",
    ],
    "studies": [
        "bash tools/tiny_family/finetune.sh output/finetune 400 256 60",
        "python -m tools.experiments.hif8_experiment run --output output/hif8_experiment --data output/finetune/cache "
        "--held-out output/finetune/held_out_cache --batch-size 1 --set eval_dataset.every=250 "
        "--set callbacks.save_checkpoint_steps=500",
        "python -m tools.experiments.hif8_cross --experiment output/hif8_experiment "
        "--held-out output/finetune/held_out_cache",
        "python -m tools.experiments.hif8_evaluation --experiment output/hif8_experiment --samples 1000 --device cuda "
        "--output output/hif8_evaluation",
        "python -m tools.experiments.hif8_experiment_torch --data output/finetune/cache "
        "--held-out output/finetune/held_out_cache --batch-size 4 --learning-rate 1e-3 --seeds 0 1 2 3 --device cuda "
        "--output output/hif8_torch",
        "python -m tools.tiny_family.write_cache --output output/digits_cache --count 256 --device cuda",
        "python -m tools.tiny_family.write_cache --output output/digits_held_out_cache --count 16 --seed 1 "
        "--split held_out --device cuda",
        "python -m tools.experiments.hif8_experiment_torch --data output/digits_cache "
        "--held-out output/digits_held_out_cache --batch-size 4 --learning-rate 1e-3 --seeds 0 1 2 3 --recipes fp32 "
        "hif8 linears attention centred_keys plain_ends plain_start scales_per_head centred_values "
        "centred_keys_and_values all_free all hif8_32768 --device cuda --output output/hif8_settings",
        "python -m tools.experiments.wide_start --times 4 --minutes 0.9 --device cuda "
        "--output output/wide/dit.safetensors",
        "python -m tools.experiments.hif8_experiment_torch --data output/digits_cache "
        "--held-out output/digits_held_out_cache --batch-size 4 --learning-rate 3e-4 --seeds 0 1 2 3 --recipes fp32 "
        "hif8 linears attention centred_keys all_free --device cuda --set load_checkpoint=output/wide/dit.safetensors "
        "--set model.dit.dim=512 --set model.dit.ffn_dim=2048 --set model.dit.num_heads=16 --output output/hif8_wide",
    ],
    "figures": [
        "python -m tools.experiments.benchmark_dit --grid 5 32 32 --repeats 3",
        "python -m tools.experiments.benchmark_hif8 --megabytes 64",
        "python -m tools.tiny_family.evaluate_tiny --backend torch --model both --samples 1000 --device cuda "
        "--output output/evaluation",
        "python -m tools.tiny_family.evaluate_tiny --backend mindspore --model sparse --samples 120 --compare "
        "--output output/evaluation",
        "python -m tools.tiny_family.tokenizer --output tools/tiny_family/weights/tokenizer",
        "python -m tools.tiny_family.plot DIR/vae.json DIR/dit_full.json DIR/dit_sparse.json --output DIR/curves.png",
    ],
}

# Commands that other tests run, in a smaller form: pattern and test.
TESTED = {
    "python -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml * --profile":
        "tests/reporting/test_profile.py::test_generate_leaves_one_too",
    "python -m ospnext_ms serve *": "tests/serving/test_serve.py::test_killed_and_started_again",
    "python -m ospnext_ms vbench generate *":
        "tests/evaluation/vbench/test_generate.py::test_videos_alone_in_their_folder_and_the_same_command_goes_on",
    "python -m ospnext_ms vbench score *":
        "tests/evaluation/vbench/test_score.py::test_a_signal_ends_it_and_upstreams_process",
    "python -m ospnext_ms vbench total *":
        "tests/evaluation/vbench/test_report.py::test_the_command_prints_and_writes",
    "python -m tools.torch_reference.gpu.benchmark --setting ???p *--train-step*":
        "tests/tools/torch_reference/gpu/test_benchmark.py::test_train_step_runs",
    "python -m tools.torch_reference.gpu.benchmark --setting ???p *--video*":
        "tests/tools/torch_reference/gpu/test_benchmark.py::test_whole_video_is_sampled_and_decoded",
    "python -m tools.torch_reference.gpu.benchmark --setting ???p *--gpus *":
        "tests/tools/torch_reference/gpu/test_benchmark.py::test_two_processes_write_one_table",
    "python -m tools.torch_reference.gpu.benchmark --setting ???p --mode *":
        "tests/tools/torch_reference/gpu/test_benchmark.py::test_tiny_run_writes_what_it_measured",
    "python -m tools.torch_reference.gpu.benchmark --plot *":
        "tests/tools/torch_reference/gpu/test_benchmark.py::test_plot_draws_every_file",
    "python -m tools.torch_reference.gpu.precision network":
        "tests/tools/torch_reference/gpu/test_precision.py::test_network_errors_grow_with_what_is_rounded",
    "python -m tools.torch_reference.gpu.precision attention":
        "tests/tools/torch_reference/gpu/test_precision.py::test_attention_errors_are_those_of_the_recipes",
    "python -m tools.experiments.step_cache_quality *":
        "tests/tools/experiments/test_step_cache_quality.py::test_report",
    "python -m tools.experiments.eight_bit_quality *":
        "tests/tools/experiments/test_eight_bit_quality.py::test_report_compares_every_mode_with_bf16",
    "python -m tools.torch_reference.gpu.parity *":
        "tests/tools/torch_reference/gpu/test_parity.py::test_torch_is_mindspore_and_a_changed_file_is_not",
    "python -m tools.tiny_family.train --stage *":
        "tests/tools/tiny_family/test_tiny_family.py::test_the_three_stages_run_after_one_another",
    "python -m ospnext_ms prepare-data --config yaml_configs/prepare_data/720p.yaml *":
        "tests/preparation/test_prepare.py::test_processes_that_share_a_run",
    "python -m tools.ascend_dry_run": "tests/tools/ascend_dry_run/test_dry_run.py::test_every_path_compiles",
    "python -m tools.ascend_dry_run --table": "tests/tools/ascend_dry_run/test_dry_run.py::test_the_table",
    "python -m tools.ascend_dry_run --config *": "tests/tools/ascend_dry_run/test_dry_run.py::test_a_yaml_file",
    "python -m tools.ascend_dry_run step-4x2-sharded --all-ranks":
        "tests/tools/ascend_dry_run/test_dry_run.py::test_all_ranks_exchange_in_the_same_order",
}

# Commands that cannot run here: pattern and reason.
NOT_RUN = {
    "bash scripts/vbench.sh FOLDER": "it fetches packages of 6 GB",
    "bash scripts/test.sh*": "it runs these tests",
    "pip install -e *": "the environment of the tests has it",
    "pip install -r requirements.txt": "it would change the environment of the tests; environment.sh does it",
    "pip install -e '.?trackers?'": "it would change the environment of the tests; swanlab's protobuf is older",
    "bash scripts/msrun.sh generate yaml_configs/generate/14b.yaml *": "it needs eight Ascend devices and the weights",
}

PLACEHOLDERS = {"SEED": "0", "WEIGHT": "0.004", "SIZE": "2"}

# How RUN is made short. Text in commands, and in configurations of the copy that they run in.
SHORTER = {
    "--output output/digits --count 512": "--output output/digits --count 6",
    "--output output/digits_held_out --count 16": "--output output/digits_held_out --count 2",
    "step_00000400": "step_00000002",
    "runner_config.steps=80": "runner_config.steps=12",
    "save_checkpoint_steps=10": "save_checkpoint_steps=4",
    "sampling.steps=30": "sampling.steps=2",
    "runner_config.iterations=8": "runner_config.iterations=1",
    "runner_config.iterations=4": "runner_config.iterations=1",
    "finetune 400 256 60": "finetune 2 6 0",
    "lora.sh output/lora": "lora.sh output/lora 2 4 2 2",
    "--batch-size 1 --set eval_dataset.every=250": "--batch-size 1 --steps 2 --seeds 0 --ablation-seeds "
                                                   "--set eval_dataset.every=1",
    "save_checkpoint_steps=500": "save_checkpoint_steps=2",
    "--seeds 0 1 2 3": "--seeds 0 --steps 2",
    "--model both --samples 1000": "--model both --samples 2 --steps 2 --no-judge",
    "--model sparse --samples 120": "--model sparse --samples 2 --steps 2 --no-judge",
    "--times 4 --minutes 0.9": "--times 4 --minutes 0.9 --clips 8 --batch-size 2 --steps 2 --workers 1",
    "output/digits_cache --count 256": "output/digits_cache --count 4",
    "output/digits_held_out_cache --count 16": "output/digits_held_out_cache --count 2",
    "--samples 1000": "--samples 2", "--device cuda": "--device cpu",
    "--grid 5 32 32 --repeats 3": "--grid 2 8 8 --repeats 1", "--megabytes 64": "--megabytes 1",
    "DIR/vae.json DIR/dit_full.json DIR/dit_sparse.json --output DIR/curves.png":
        "docs/results/logs/vae.json docs/results/logs/dit_full.json --output curves.png",
}
SHORTER_CONFIGS = {
    "train/tiny.yaml": {"steps: 400": "steps: 2", "batch_size: 4": "batch_size: 2", "clips: 16": "clips: 2",
                        "sigmas: 8": "sigmas: 2", "warmup_steps: 20": "warmup_steps: 1",
                        "save_checkpoint_steps: 100": "save_checkpoint_steps: 2"},
    "train/tiny_watched.yaml": {"steps: 10": "steps: 2"},
    "post_train/tiny.yaml": {"  prompts: 4": "  prompts: 1", "group_size: 8": "group_size: 4",
                             "  batch_size: 16": "  batch_size: 4", "micro_batch_size: 16": "micro_batch_size: 4",
                             "iterations: 20": "iterations: 1", "count: 200": "count: 2"},
}
