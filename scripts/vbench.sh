#!/usr/bin/env bash
# Makes an environment with upstream's VBench package, for `vbench score --python FOLDER/bin/python`:
#
#   bash scripts/vbench.sh FOLDER
#
# Safe to run again. It takes 6.5 GB (PyTorch with CUDA) and some minutes, and needs Python 3.11 (OSPNEXT_PYTHON: its
# path). Weights are not fetched here: upstream's package fetches them when a dimension is first scored, with wget.
# detectron2, which four dimensions need, is no release of a package index: docs/vbench.md.
set -euo pipefail
if [ $# -ne 1 ]; then
  sed -n '2,/^set/{/^#/p}' "$0" >&2
  exit 2
fi
folder=$1
requirements=$(cd "$(dirname "$0")/.." && pwd)/requirements-vbench.txt
interpreter=${OSPNEXT_PYTHON:-python3.11}
if ! command -v "$interpreter" >/dev/null; then
  echo "error: $interpreter not found. The pinned releases need Python 3.11; set OSPNEXT_PYTHON to its path." >&2
  exit 1
fi
python=$folder/bin/python
[ -x "$python" ] || "$interpreter" -m venv "$folder"
# The older packages among them are built with what is here, and import pkg_resources, which later setuptools have not.
"$python" -m pip install --quiet "setuptools==69.5.1" wheel
"$python" -m pip install --quiet "torch==$(sed -n 's/^torch==//p' "$requirements")" "numpy==$(sed -n 's/^numpy==//p' "$requirements")"
"$python" -m pip install --quiet --no-build-isolation --requirement "$requirements"
"$python" -c 'import vbench, torch; print("vbench is there, with torch", torch.__version__)'
echo "$python"
