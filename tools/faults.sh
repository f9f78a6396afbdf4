#!/usr/bin/env bash
# Kills every command that writes, and gives it a full, broken and read-only disk, at up to DALLE_FAULTS of its calls that change
# something (30 unless told; 100000 is all of them), and prints what became of it. An hour or more. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/venv.sh
install test
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -m faults tests/faults "$@"
