"""Too little memory is one line, not a traceback; any other error of a library stays what it is."""

import errno
import os

import pytest
import torch

from dalle.cli import arguments
from dalle.config.checks import installed


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("all of it is taken"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory:\nyou tried 9 bytes"
        ),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("a.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        RuntimeError("Resource temporarily unavailable"),
        RuntimeError("could not create a primitive"),
        SystemError("error return without exception set"),
        SystemError("<function _find_and_load at 0x7f6f7ff17ce0> returned NULL without setting an exception"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_is_one_line_that_says_what_to_do(capsys, monkeypatch, error):
    monkeypatch.delenv("DALLE_DEBUG", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def fail():
        raise error

    with pytest.raises(SystemExit) as ended:
        arguments.run(fail, "dalle-export")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("dalle-export: out of memory") and said.count("\n") == 1
    assert said.endswith("; make the batch, the chunk or the model smaller, or use a machine with more\n")


def test_what_follows_from_it_is_it(capsys):
    def fail():
        try:
            raise MemoryError
        except MemoryError:
            raise RuntimeError("no more threads")  # noqa: B904 as libraries do

    with pytest.raises(SystemExit):
        arguments.run(fail, "dalle-export")
    assert "out of memory (no more threads)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes do not match"), ImportError("no module x"), OSError("odd"), SystemError("bad argument")],
)
def test_other_errors_keep_their_traceback(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        arguments.run(fail, "dalle-export")


@pytest.mark.parametrize(
    "why", ["libx.so: failed to map segment from shared object", "error return without exception set"]
)
def test_a_library_for_which_there_is_no_memory_is_not_missing(why):
    with pytest.raises(ImportError, match=why), installed("x is not installed: pip install x"):
        raise ImportError(why)


def test_a_library_that_is_missing_is_named():
    with (
        pytest.raises(ValueError, match=r"^x is not installed: pip install x$"),
        installed("x is not installed: pip install x"),
    ):
        import no_such_library_as_this  # noqa: F401
