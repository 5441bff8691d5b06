#!/usr/bin/env bash
# From a fresh machine (Python 3.11, gcc and a package index) to all tests run. Safe to run again.
# Extra arguments go to pytest, for example: bash scripts/test.sh tests/models -x
# In two processes: bash scripts/test.sh --numprocesses 2 --dist loadgroup
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements-test.txt
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest "$@"
