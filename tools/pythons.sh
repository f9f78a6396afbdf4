#!/usr/bin/env bash
# What the package promises of Python: for each version from 3.10 that is here (or those that PYTHONS names, as "3.12 3.13"), the wheel with
# all that it asks for goes into an empty environment, every file of it is imported, and a ready model draws. With arguments, pytest is run
# with them as well, in a checkout of the last commit.
#   bash tools/pythons.sh
#   PYTHONS=3.13 bash tools/pythons.sh tests/web -m 'not slow'
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pip="python -m pip --disable-pip-version-check --quiet"

find_python() { # VERSION: a program that runs, of the PATH or of pyenv
    for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            command -v "$python"
            return
        fi
    done
}

git clone --quiet . "$folder/checkout"
tried=""
for version in ${PYTHONS:-3.10 3.11 3.12 3.13}; do
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        echo "Python $version: not here"
        if [ -n "${PYTHONS:-}" ]; then exit 1; fi
        continue
    fi
    echo "Python $version: $python"
    "$python" -m venv "$folder/$version"
    (
        cd "$folder/$version"
        constraints=$folder/checkout/constraints.txt
        source bin/activate
        # torch first: DeepSpeed looks at it while it is being built
        $pip install -c "$constraints" setuptools wheel torch numpy
        $pip wheel --no-deps --no-build-isolation --wheel-dir "$folder/wheels-$version" "$folder/checkout"
        $pip install -c "$constraints" --no-build-isolation "$(echo "$folder/wheels-$version"/dalle-*.whl)[data,eval,tensorboard,text,web]"
        $pip check
        python - <<'END'
import importlib, pkgutil, dalle

names = [each.name for each in pkgutil.walk_packages(dalle.__path__, "dalle.") if not each.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(f"{len(names)} files of {dalle.__path__[0]} import")
END
        dalle-sample "a 3d emoji of a chicken" --n 8 --output drawn
    )
    if [ $# -gt 0 ]; then
        git clone --quiet . "$folder/tested-$version"
        PYTHON=$python bash "$folder/tested-$version/tools/test.sh" "$@"
        rm -rf "$folder/tested-$version"
    fi
    rm -rf "${folder:?}/$version" "$folder/wheels-$version"
    tried="$tried $version"
done
echo "tried:${tried:? none is here}"
