#!/usr/bin/env bash
# The real run on a CPU: mp4 files -> prepare-data -> fine-tuning of the full tiny model to the sparse one -> figures.
# From the repository's root, in the environment of scripts/test.sh:
#   bash tools/tiny_family/finetune.sh OUTPUT [STEPS] [CLIPS] [SAMPLES]
# Safe to run again: what is complete is kept, training resumes. SAMPLES prompts are drawn before and after (0: none).
set -euo pipefail
output=$1 steps=${2:-400} clips=${3:-512} samples=${4:-120}
python=${OSPNEXT_VENV:-.venv}/bin/python
family=tools/tiny_family
train=(--config yaml_configs/train/tiny.yaml --set output_dir="$output/train" --set train_dataset.path="$output/cache"
  --set eval_dataset.path="$output/held_out_cache" --set runner_config.steps="$steps")

[ -d "$output/videos" ] || "$python" -m tools.tiny_family.write_videos --output "$output/videos" --count "$clips"
[ -d "$output/held_out" ] ||
  "$python" -m tools.tiny_family.write_videos --output "$output/held_out" --count 16 --seed 1 --split held_out
for name in videos:cache held_out:held_out_cache; do
  "$python" -m ospnext_ms prepare-data --config yaml_configs/prepare_data/tiny.yaml \
    --set manifest="$output/${name%:*}/manifest.jsonl" --set output_dir="$output/${name#*:}"
done

"$python" -m ospnext_ms train "${train[@]}"
trained=$output/train/checkpoints/step_$(printf %08d "$steps")/ema
"$python" -m tools.experiments.sparse_gap "${train[@]}" --trained "$trained" --output "$output/gap.json"

# The trained average in the original names, beside the family's other weights, and the start in the sparse layout.
for model in before after; do
  mkdir -p "$output/$model"
  cp -r $family/weights/tokenizer $family/weights/{vae,umt5,dit_full}.safetensors "$output/$model/"
done
cp $family/weights/dit_full.safetensors "$output/before/dit_sparse.safetensors"
"$python" tools/convert_checkpoint.py dit --direction mindspore-to-torch --config yaml_configs/train/tiny.yaml \
  --source "$trained" --target "$output/after/dit_sparse.safetensors" --overwrite
if [ "$samples" -gt 0 ]; then
  for model in before after; do
    "$python" -m tools.tiny_family.evaluate_tiny --backend mindspore --model sparse --samples "$samples" --no-judge \
      --weights "$output/$model" --output "$output/evaluation_$model"
  done
fi
"$python" -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml --prompt "a bright 7 drifting up" \
  --set model.dit.checkpoint="$trained" --output "$output/video"
