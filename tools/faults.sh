#!/usr/bin/env bash
# Kills every command that writes, at writes and at random moments, on one and two processes; gives it a disk that is full, broken or
# read-only at up to DALLE_FAULTS of its calls that change something (30 unless told; 100000 is all of them), once and from there on,
# a small disk (a tmpfs, for which it has to be root), a slow one, too little memory and a clock that jumps; cuts the link of two
# machines; damages every kind of file, bytes and structure, four times DALLE_FAULTS_DAMAGED (500); looks whether memory grows in
# DALLE_FAULTS_UPDATES (10000) and DALLE_FAULTS_DRAWS (1000). Prints a table of what became of it, for docs/trust.md.
# DALLE_FAULTS_SEED chooses other trials. Some hours. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/venv.sh
install test
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -m faults tests/faults "$@"
