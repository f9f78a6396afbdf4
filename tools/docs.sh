#!/usr/bin/env bash
# Builds the documentation site into site/, which git ignores: site/index.html opens from disk. A warning, such as a link that leads
# nowhere, ends it. Arguments go to mkdocs, such as --site-dir FOLDER. In an environment that is active it is built with what is
# there, otherwise in .venv with the extra `docs`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=python
if [ -z "${VIRTUAL_ENV:-}" ] && ! python -c 'import mkdocs, mkdocstrings, dalle' 2>/dev/null; then
    source tools/venv.sh
    install docs
    python=.venv/bin/python
fi
export NO_MKDOCS_2_WARNING=1
exec "$python" -m mkdocs build --strict "$@"
