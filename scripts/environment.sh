# Sourced by quickstart.sh and test.sh, from the repository's root: a virtual environment with the pinned packages and
# this package, made once and kept up to date.
# Usage: prepare_environment REQUIREMENTS_FILE. Sets PYTHON. OSPNEXT_VENV chooses another place than .venv.

prepare_environment() {
  local requirements=$1
  local venv=${OSPNEXT_VENV:-$PWD/.venv}
  local stamp=$venv/.installed-$(basename "$requirements")
  local interpreter=${OSPNEXT_PYTHON:-python3.11}
  PYTHON=$venv/bin/python
  if ! command -v "$interpreter" >/dev/null; then
    echo "error: $interpreter not found. MindSpore 2.9 needs Python 3.11; set OSPNEXT_PYTHON to its path." >&2
    return 1
  fi
  # An environment elsewhere may serve several checkouts: it gets the packages only, and PYTHONPATH says whose code runs.
  local wanted pins own=yes
  [ "$(realpath -m "$venv")" = "$(realpath -m "$PWD/.venv")" ] || own=
  [ "$own" ] || export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  pins=$(cat requirements.txt "$requirements" | grep -v -e '^#' -e '^-' | sort -u)
  wanted=$({ echo "$pins"; [ -z "$own" ] || { echo "$PWD"; cat pyproject.toml; }; } | sha256sum)
  if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return 0
  fi
  echo "Bringing $venv up to date with $requirements (a new one: about 3.5 GB, some minutes) ..."
  [ -x "$PYTHON" ] || "$interpreter" -m venv "$venv"
  "$PYTHON" -m pip install --quiet --requirement /dev/stdin <<<"$pins"
  [ -z "$own" ] || "$PYTHON" -m pip install --quiet --no-deps --editable .
  echo "$wanted" >"$stamp"
}
