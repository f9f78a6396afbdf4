"""Text of strangers, in every way that it comes in: halves of characters, other encodings, and what a terminal would obey."""

import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dalle.data.captions import read_all_captions, read_captions
from dalle.data.counts import Broken, Counts
from dalle.data.tokens import Meta, TokenShards, TokenWriter, packed
from dalle.sampling.captioning import read_prompts_file
from dalle.text import Tokenizer
from tests.conftest import ROOT

HALF = '"half an \\ud83d emoji"'


def _tar(path, files: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def test_one_caption_with_half_an_emoji_is_broken_and_all_else_is_read(tmp_path):
    captions = {"a": HALF, "b": '"whole"', "c": '"\\ud83d\\ude00 whole"'}
    shard = _tar(tmp_path / "a.tar", {f"{k}.json": f'{{"caption": {v}}}'.encode() for k, v in captions.items()})
    counts = Counts()
    assert list(read_all_captions(shard, counts=counts)) == ["whole", "\U0001f600 whole"]
    assert counts.read == 3 and counts.num_broken == 1 and "caption is not text" in counts.line()
    assert Tokenizer.train(read_all_captions(shard), 300).encode("whole")


def test_a_list_of_captions_loses_the_half_one_alone():
    assert read_captions({"json": f'{{"captions": [{HALF}, "b"]}}'.encode()})[0] == ["b"]
    with pytest.raises(Broken, match="caption is not text"):
        read_captions({"json": f'{{"captions": [{HALF}]}}'.encode()})


def test_a_half_one_in_token_shards_is_cleaned(tmp_path):
    """As the tokenizer cleans it, in shards that others wrote."""
    with TokenWriter(tmp_path, Meta(2, 16, "0"), 9) as writer:
        writer.add(np.arange(4), ["a"])
        writer.close()
    path = tmp_path / "tokens-00000.safetensors"
    text = f"[{HALF}]".encode()
    ends = {"captions_utf8": np.frombuffer(text, np.uint8), "caption_ends_N": np.array([len(text)])}
    save_file(load_file(path) | packed(np.arange(4, dtype=np.uint16)[None], [["a"]]) | ends, path)
    assert TokenShards(tmp_path).pair(0, 0)[1] == ["half an � emoji"]


@pytest.mark.parametrize(
    "line", [f'{{"caption": {HALF}}}', "[" * 100_000, '{"caption": ["a"]}', '{"caption": 1e999}', "null"]
)
def test_a_file_of_captions_is_refused_with_the_line(tmp_path, line):
    path = tmp_path / "captions.jsonl"
    path.write_text(f'{{"caption": "whole"}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"^captions {path}, line 2: ") as raised:
        read_prompts_file(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "words", [[b"caf\xe9"], [b"--caption=caf\xe9"], [b"--output", b"caf\xe9", b"a cat"], [b"--caf\xe9=1"]]
)
def test_a_line_of_another_encoding_is_one_line(words):
    code = "from dalle.cli.sample import main; main()"
    done = subprocess.run(
        [sys.executable.encode(), b"-c", code.encode(), *words],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )
    said = done.stderr.decode()
    assert done.returncode == 2 and said.count("\n") == 1 and "is no text" in said, said
