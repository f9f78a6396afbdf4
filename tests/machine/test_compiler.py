"""Compilers that are missing or broken, kernels that are wrong, a cache that cannot be used."""

import shutil

import pytest

from dalle.decoding import native
from dalle.decoding.kernels import NativeKernels
from dalle.machine import compiler as module
from dalle.machine.compiler import compiler_finding, kernels_finding
from dalle.machine.probes import kernels as probe

RIGHT = {"attention in fp32": 1e-6, "attention in bf16": 1e-2, "layer norm in fp32": 1e-6, "layer norm in bf16": 1e-2}
TOLD = {"compiler": "g++", "said": [], "seconds": 3.0, "wanted_folder": "/home/me/.cache/dalle", "off": RIGHT}
TOLD["place"] = "/home/me/.cache/dalle/native-0.so"


def test_no_compiler():
    found = compiler_finding(None)
    assert found.verdict == "warn" and "apt-get install g++" in found.advice


def _script(path, *lines):
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o700)
    return str(path)


def test_compilers_that_are_not_there_or_fail(tmp_path):
    missing = compiler_finding("/no/such/compiler")
    assert missing.verdict == "warn" and "/no/such/compiler: No such file" in missing.fact
    says = 'case "$1" in --version) echo "mine 1.0"; exit;; esac'
    broken = _script(tmp_path / "broken", says, "echo 'fatal error: omp.h: No such file' >&2; exit 1")
    found = compiler_finding(broken)
    assert found.verdict == "warn" and "omp.h: No such file" in found.fact and "set CXX" in found.advice
    # what it makes does not run
    wrong = _script(tmp_path / "wrong", says, 'printf "#!/bin/sh\\nexit 3\\n" > "$3"; chmod 700 "$3"')
    assert "exit status 3" in compiler_finding(wrong).fact
    right = _script(tmp_path / "right", says, 'printf "#!/bin/sh\\nexit 0\\n" > "$3"; chmod 700 "$3"')
    assert (compiler_finding(right).verdict, compiler_finding(right).fact) == ("ok", "mine 1.0")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_compiler_of_this_machine():
    assert compiler_finding(shutil.which("g++")).verdict == "ok"


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({}, "ok", "compiled and right, in /home/me/.cache/dalle"),
        ({"place": "/var/tmp/dalle-1000/native-0.so"}, "warn", "since /home/me/.cache/dalle cannot be used"),
        ({"off": RIGHT | {"attention in bf16": 0.3}}, "fail", "attention in bf16 is off by 0.3"),
        ({"off": RIGHT | {"layer norm in fp32": float("inf")}}, "fail", "--sampling.compile false"),
        ({"off": RIGHT | {"layer norm in fp32": 1e-3}}, "fail", "layer norm in fp32"),
        ({"failed": "was ended by SIGILL"}, "fail", "was ended by SIGILL"),
    ],
)
def test_what_is_said_of_the_kernels(change, verdict, words):
    found = kernels_finding(TOLD | change)
    assert found.verdict == verdict and words in found.line()


def test_kernels_that_could_not_be_compiled():
    told = {name: value for name, value in TOLD.items() if name not in ("place", "off")}
    found = kernels_finding(told | {"said": ["g++ cannot compile native.cpp (no space)"]})
    assert found.verdict == "warn" and "no space" in found.fact
    assert kernels_finding(told).verdict == "warn"


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_wrong_kernels_are_found(monkeypatch):
    """Each of the two functions by itself; the right ones are well within what is allowed."""
    off = probe._off()
    assert all(value <= module._MOST_OFF[name.split()[-1]] / 2 for name, value in off.items()) and len(off) == 4
    attend, add_norm = NativeKernels.attend, NativeKernels.add_norm
    with monkeypatch.context() as patch:
        patch.setattr(NativeKernels, "attend", lambda *given: 1.3 * attend(*given))
        wrong = kernels_finding(TOLD | {"off": probe._off()})
        assert wrong.verdict == "fail" and "attention in fp32" in wrong.fact and "attention in bf16" in wrong.fact
    with monkeypatch.context() as patch:
        patch.setattr(NativeKernels, "add_norm", lambda *given: add_norm(*given) * float("nan"))
        wrong = kernels_finding(TOLD | {"off": probe._off()})
        assert "layer norm in fp32 is off by inf" in wrong.fact and "attention" not in wrong.fact
