#!/usr/bin/env bash
# Installs the program, and runs all ordinary tests in two processes; arguments go to pytest (-m stress: the rest).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh requirements-dev.txt
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # for each of the two processes
exec "${SASNET_VENV:-.venv}/bin/python" -m pytest -n 2 --dist worksteal "$@"
