# Sourced by the other scripts: makes .venv and installs the project, with an extra where one is named. Quick when nothing has changed, and
# safe when two of them start at once.
#   install [EXTRA]
install() {
    extra=${1:-}
    exec 9>.venv.lock
    if command -v flock >/dev/null; then flock 9; fi
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "Python 3.10 or newer is needed; name one with PYTHON=…" >&2
        exit 1
    fi
    stamp=.venv/.installed-$extra
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        # torch first: DeepSpeed looks at it while it is being built
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel torch numpy
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
            --no-build-isolation -e ".${extra:+[$extra]}"
        echo "$wanted" >"$stamp"
    fi
    exec 9>&-
}
