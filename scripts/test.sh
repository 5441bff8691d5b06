#!/usr/bin/env bash
# From a fresh machine (Python 3.11, gcc and a package index) to all tests run. Safe to run again.
# Extra arguments go to pytest, for example: bash scripts/test.sh tests/models -x
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements-test.txt
"$PYTHON" -m ruff check .
# All tests run in two processes; a choice of them in one, whose output can be watched.
[ $# -gt 0 ] || set -- --numprocesses 2 --dist loadgroup
exec "$PYTHON" -m pytest "$@"
