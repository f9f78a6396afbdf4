#!/usr/bin/env bash
# Makes .venv, installs with the test extra, checks style and types, runs the tests: two at a time, each on one thread, which at their
# sizes is quicker than one on two. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/venv.sh
install test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy   # for the oldest Python; the newest by --python-version 3.13
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
