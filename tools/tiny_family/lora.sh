#!/usr/bin/env bash
# A new look from 64 clips on a CPU: mp4 files -> prepare-data -> adapters beside the sparse tiny model -> figures.
# From the repository's root, in the environment of scripts/test.sh:
#   bash tools/tiny_family/lora.sh OUTPUT [STEPS] [CLIPS] [SAMPLES] [HELD_OUT]
# Safe to run again: what is complete is kept, training resumes. SAMPLES prompts are drawn before and after.
set -euo pipefail
output=$1 steps=${2:-400} clips=${3:-64} samples=${4:-40} held_out=${5:-12}
python=${OSPNEXT_VENV:-.venv}/bin/python
train=(--config yaml_configs/train/tiny_lora.yaml --set output_dir="$output/train"
  --set train_dataset.path="$output/cache" --set eval_dataset.path="$output/held_out_cache"
  --set eval_dataset.clips="$held_out" --set runner_config.steps="$steps")

write=("$python" -m tools.tiny_family.write_videos --look shaded)
[ -d "$output/videos" ] || "${write[@]}" --output "$output/videos" --count "$clips"
[ -d "$output/held_out" ] || "${write[@]}" --output "$output/held_out" --count "$held_out" --seed 1 --split held_out
for name in videos:cache held_out:held_out_cache; do
  "$python" -m ospnext_ms prepare-data --config yaml_configs/prepare_data/tiny.yaml \
    --set manifest="$output/${name%:*}/manifest.jsonl" --set output_dir="$output/${name#*:}"
done

"$python" -m ospnext_ms train "${train[@]}"
"$python" -m tools.tiny_family.evaluate_look "${train[@]}" --adapter "$output/train/adapter_ema" --look shaded \
  --samples "$samples" --output "$output/evaluation"
"$python" -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml --prompt "a bright 7 drifting up" \
  --set adapter="$output/train/adapter_ema" --output "$output/video"
