#!/usr/bin/env bash
# From a fresh machine (Python 3.11, gcc and a package index) to all tests run. Safe to run again.
# Extra arguments go to pytest, for example: bash scripts/test.sh tests/models -x
# Without arguments: first the tests that start several processes themselves, then all others in two processes.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements-test.txt
"$PYTHON" -m ruff check .
if [ $# -gt 0 ]; then
  exec "$PYTHON" -m pytest "$@"
fi
"$PYTHON" -m pytest tests/distributed
exec "$PYTHON" -m pytest --ignore tests/distributed --numprocesses 2 --dist loadgroup
