#!/usr/bin/env bash
# From a fresh machine (Python 3.11 and a package index) to a generated video. Safe to run again.
# Extra arguments go to `generate`, for example: bash scripts/quickstart.sh --prompt "a dim 7 moving up" --seed 3
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements.txt
exec "$PYTHON" -m ospnext_ms generate --config yaml_configs/generate/tiny.yaml --overwrite "$@"
