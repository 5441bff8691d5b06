#!/usr/bin/env bash
# From a fresh machine (Python 3.11, gcc and a package index) to all tests run. Safe to run again.
#
#   bash scripts/test.sh                     lint, types, and all tests but the slow ones
#   bash scripts/test.sh --fast              lint, types, and what needs neither MindSpore nor PyTorch: under a minute
#   bash scripts/test.sh --slow              lint, types, and the slow tests, those of several processes first
#   bash scripts/test.sh tests/models -x     other arguments go to pytest, `-m slow` for a file's slow tests
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements-test.txt

"$PYTHON" -m ruff check .
"$PYTHON" -m pyright --pythonpath "$PYTHON"

if [ "${1:-}" = --fast ]; then
  exec "$PYTHON" -m pytest -m "not framework and not slow" "${@:2}"
elif [ "${1:-}" = --slow ]; then
  # All are run, whatever fails.
  status=0
  "$PYTHON" -m pytest -m "processes and slow" --durations=0 "${@:2}" || status=$?
  "$PYTHON" -m pytest -m "not processes and slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder \
    --durations=0 "${@:2}" || status=$?
  exit "$status"
elif [ $# -gt 0 ]; then
  exec "$PYTHON" -m pytest "$@"
fi
"$PYTHON" -m pytest -m "processes and not slow"
exec "$PYTHON" -m pytest -m "not processes and not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder
