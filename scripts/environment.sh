# Sourced by quickstart.sh and test.sh: a virtual environment with pinned packages, made once and kept up to date.
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
  local wanted
  wanted=$(cat requirements.txt "$requirements" | sha256sum)
  if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return 0
  fi
  echo "Installing $requirements into $venv (about 3.5 GB, some minutes) ..."
  [ -x "$PYTHON" ] || "$interpreter" -m venv "$venv"
  "$PYTHON" -m pip install --quiet --requirement "$requirements"
  echo "$wanted" >"$stamp"
}
