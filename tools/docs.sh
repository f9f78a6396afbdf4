#!/usr/bin/env bash
# Builds the documentation site into site/, which git ignores. A warning, such as a link that leads nowhere, ends it. site/index.html
# opens from disk; searching takes a server, such as python -m http.server --directory site. Arguments go to mkdocs, such as
# --site-dir FOLDER. Where the Python at hand has the extra `docs`, it is taken, otherwise .venv is made with it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=python
if ! python -c 'import dalle, material, mkdocstrings' 2>/dev/null; then
    source tools/venv.sh
    install docs
    python=.venv/bin/python
fi
export NO_MKDOCS_2_WARNING=1
exec "$python" -m mkdocs build --strict "$@"
