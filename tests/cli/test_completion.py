"""Completion in the shell: bash, with its own line editor, asked by pressing Tab."""

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

from dalle.cli.arguments import parse
from dalle.cli.shell.completion import completion, script
from dalle.cli.shell.meanings import meanings
from dalle.config import Sample, TrainPrior, shape
from dalle.config.programs import PROGRAMS
from dalle.ready.names import ready_names
from tests.conftest import clean_environment

_WAIT_S = 60
BASH = shutil.which("bash")


class Terminal:
    """An interactive bash that has read the script, with its prompt seen."""

    def __init__(self, folder):
        (folder / "script").write_text(script("bash"))
        (folder / "pictures").mkdir()
        (folder / "pretty.yaml").touch()
        self._process, self._end = pty.fork()
        if self._process == 0:
            os.chdir(folder)
            environment = clean_environment() | {
                "PS1": "READY$ ",
                "TERM": "dumb",
                "INPUTRC": "/dev/null",
                "HISTFILE": "",
            }
            os.execve(BASH, ["bash", "--norc", "--noprofile", "-i"], environment)
        self._seen = ""
        self.say(
            "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; source ./script; echo IS''THERE\n",
            "ISTHERE",
        )

    def say(self, keys, until):
        """Press keys, and read on until something is seen; what was read."""
        os.write(self._end, keys.encode())
        read, last = "", time.monotonic() + _WAIT_S
        # with the next prompt, for what is typed before it bash does not complete
        while "READY$ " not in read.partition(until)[2]:
            waiting = select.poll()  # which knows files beyond the 1,024th, too
            waiting.register(self._end, select.POLLIN)
            assert waiting.poll(1000 * max(0, last - time.monotonic())), f"no {until!r} in {read!r}"
            read += os.read(self._end, 1 << 16).decode(errors="replace")
        return read

    def completed(self, line):
        """The line after Tab."""
        # the beginning of the line becomes a command that prints it
        read = self.say(f"{line}\t\x01echo 'GO''T' \x05 'EN''D'\n", "END")
        return re.findall(r"GOT (.*?) ?END", read.replace("\r", "").replace("\n", ""))[-1].strip()

    def listed(self, line):
        """What two Tabs show below the line."""
        read = self.say(f"{line}\t\t\x15echo EN''D\n", "END")
        return set(read.replace("\r", "").split())

    def close(self):
        os.write(self._end, b"\x15exit\n")
        os.waitpid(self._process, 0)
        os.close(self._end)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory):
    if BASH is None:
        pytest.skip("no bash")
    it = Terminal(tmp_path_factory.mktemp("shell"))
    yield it
    it.close()


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("dalle-sample --sampling.te", "dalle-sample --sampling.temperature"),
        ("dalle-sample --layout g", "dalle-sample --layout g"),  # two begin so
        ("dalle-sample --layout gen", "dalle-sample --layout geneval"),
        ("dalle-sample --rerank t", "dalle-sample --rerank true"),
        ("dalle-sample --n 4 --prompt_i", "dalle-sample --n 4 --prompt_image"),
        ("dalle-train pic", "dalle-train pictures/"),
        ("dalle-train pictures --fro", "dalle-train pictures --from"),
        ("dalle-train-prior --config demo/pr", "dalle-train-prior --config demo/prior"),
        ("dalle-describe demo/pr", "dalle-describe demo/prior"),
        ("dalle-train-prior --config pret", "dalle-train-prior --config pretty.yaml"),
        ("dalle-completion f", "dalle-completion fish"),
    ],
)
def test_tab_completes(terminal, typed, wanted):
    assert terminal.completed(typed) == wanted


@pytest.mark.skipif("shapes" not in ready_names(), reason="a checkout without weights")
def test_tab_lists_models_and_keys(terminal):
    assert {"shapes", "pictures/"} <= terminal.listed("dalle-sample --model ")
    assert {"shapes", "pictures/"} <= terminal.listed("dalle-serve --model pictures ")
    assert {"true", "false", "null"} <= terminal.listed("dalle-sample --rerank ")
    assert not {"true", "pictures/"} & terminal.listed("dalle-sample --n 4 --sampling.te")
    keys = {f"--{name}" for name in shape.keys_of(Sample) if name.startswith("sampling.")}
    assert keys <= terminal.listed("dalle-sample --sampling.")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_key_is_in_the_script(shell, capsys):
    completion([shell])
    text = capsys.readouterr().out
    assert text == script(shell)
    ends = {"bash": r"^complete .* (\S+)$", "zsh": r"^compdef \S+ (\S+)$", "fish": r"^complete -c (\S+) -e$"}
    assert re.findall(ends[shell], text, flags=re.MULTILINE) == list(PROGRAMS)
    assert "zsh_eval_context" not in text  # the end that shtab has for a file of one command
    text = text.replace(")", " ")  # an array's last
    leaves = [name for name, kind in shape.keys_of(TrainPrior).items() if shape.section(kind) is None]
    written = {"bash": " --{} ", "zsh": '"--{}[', "fish": "-l {} "}[shell]
    assert len(leaves) > 60
    for name in leaves:
        assert written.format(name) in text or name == "start_from", name  # which has two names


def test_only_what_may_be_a_path_is_completed_by_paths():
    written = re.findall(
        r'"--(caption|output|n|layout|model|sampling.top_k)\[.*\]:.*:(.*)"$', _of_sample("zsh"), re.MULTILINE
    )
    assert dict(written) == {
        **{"caption": "", "n": "", "sampling.top_k": "", "output": "_files"},
        **{"layout": "(gallery geneval)", "model": "_dalle_model_files"},
    }


def _of_sample(shell):
    return script(shell).split("compdef _shtab_dalle_train dalle-train\n")[1].split("compdef _shtab_dalle_sample ")[0]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_is_one_of_that_shell(shell, tmp_path):
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"NOT TRIED: no {shell} here")
    (tmp_path / "script").write_text(script(shell))
    done = subprocess.run([program, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused():
    with pytest.raises(ValueError, match=r"^shell tcsh: must be one of bash, zsh, fish"):
        completion(["tcsh"])
    with pytest.raises(ValueError, match="missing: --shell"):
        completion([])
    assert parse(PROGRAMS["dalle-completion"].config, "dalle-completion", ["zsh"], "shell").shell == "zsh"


def test_meanings_are_one_line_for_each_name():
    told = meanings(Sample)
    assert set(told) == set(Sample.__dataclass_fields__)
    assert told["n"] == "candidates of each caption"
    assert not [text for text in told.values() if "\n" in text or not text]
