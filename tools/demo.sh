#!/usr/bin/env bash
# From a fresh checkout to a gallery of drawn captions: makes .venv, installs, runs dalle-demo. Arguments go to dalle-demo.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/venv.sh
install
exec .venv/bin/dalle-demo "$@"
