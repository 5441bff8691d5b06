#!/usr/bin/env bash
# From a fresh machine (Python 3.11, gcc and a package index) to all tests run. Safe to run again.
#
#   bash scripts/test.sh                     lint, types, and all tests but the slow ones
#   bash scripts/test.sh --fast              lint, types, and what needs neither MindSpore nor PyTorch: under a minute
#   bash scripts/test.sh -m slow             other arguments go to pytest
#   bash scripts/test.sh tests/models -x
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements-test.txt

"$PYTHON" -m ruff check .
"$PYTHON" -m pyright --pythonpath "$PYTHON"

if [ "${1:-}" = --fast ]; then
  exec "$PYTHON" -m pytest -m "not framework and not slow" "${@:2}"
elif [ $# -gt 0 ]; then
  exec "$PYTHON" -m pytest "$@"
fi
"$PYTHON" -m pytest -m "processes and not slow"
exec "$PYTHON" -m pytest -m "not processes and not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder
