"""Text of strangers, in every way that it comes in: halves of characters, other encodings, and what a terminal would obey."""

import io
import os
import subprocess
import sys
import tarfile
import warnings

import braceexpand
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dalle.cli import arguments
from dalle.cli.caption import _print
from dalle.config.checks import printable
from dalle.data.captions import read_all_captions, read_captions
from dalle.data.counts import Broken, Counts
from dalle.data.naming import _count, names
from dalle.data.shards import read
from dalle.data.tokens import Meta, TokenShards, TokenWriter, packed
from dalle.reporting.telemetry import Telemetry
from dalle.sampling.captioning import ScoredCaption, read_prompts_file
from dalle.sampling.drawing import Drawing
from dalle.sampling.gallery import Gallery
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


@pytest.mark.parametrize(
    "spec",
    [
        *("{1..100000000}.tar", "{0..99999999999999999999999999999999}.tar", "{-9000000..9000000}.tar"),
        *("{1..1000}{1..1000}{1..1000}.tar", "{a,b}" * 40, "{a," * 5000 + "}" * 5000),
    ],
)
def test_patterns_of_more_files_than_there_are_are_refused(spec):
    with pytest.raises(ValueError, match=r"names more than 1,000,000 files|has too many braces") as raised:
        names(f"x{spec}")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "spec", ["{1..100}{1..100}", "{0..9}{a,b{1..3},}x", "{1..9..2}", r"\\{a,b\\}", "{a..e}", "a,b", "{{a,b},c}{1..2}"]
)
def test_names_are_counted_as_they_are_expanded(spec):
    assert spec == "{a..e}" or _count(spec) == sum(1 for _ in braceexpand.braceexpand(spec))


def test_patterns_of_many_files_are_taken():
    assert len(names("{00000..99999}.tar")) == 100_000
    assert names("{a,b}{1..3}.tar")[-1] == "b3.tar"


def test_a_sparse_member_of_a_tar_is_left_out(tmp_path):
    """Its holes would be read as zeros: a file of a kilobyte would fill the memory."""
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
        header[124:136], header[156:157] = b"%011o\0" % 0, tarfile.GNUTYPE_SPARSE
        size = 8 << 40  # of eight terabytes one hole
        header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
        header[483:495] = b"\x80" + size.to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        file.write(header)
    with tarfile.open(path) as tar:
        assert tar.next().issparse()
    whole = _tar(tmp_path / "b.tar", {"b.png": b"png", "b.txt": b"b"})
    path.write_bytes(path.read_bytes() + (tmp_path / "b.tar").read_bytes())
    samples = list(read([str(path)]))
    assert [(s["__key__"], s.get("__other__")) for s in samples] == [("a.png", "other"), ("b", None)], whole


EVIL = "a cat\x1b]0;owned\x07\x1b[2J\x9b2J\r\u202egnp.exe\n\ud83d"


def test_what_a_terminal_would_obey_is_written_out():
    shown = printable(EVIL)
    assert shown.isprintable() and shown.startswith(r"a cat\x1b]0;owned\x07\x1b[2J\x9b2J\r\u202egnp.exe\n\ud83d")
    family = "ein Bär × 日本 \U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert printable(family) == family


def test_errors_warnings_logs_and_tables_say_it_so(capsys, tmp_path):
    def refuse():
        raise ValueError(EVIL)

    with pytest.raises(SystemExit):
        arguments.run(refuse, "dalle-sample")
    before = warnings.formatwarning
    arguments.plain_warnings("dalle-sample")
    told = warnings.formatwarning(UserWarning(EVIL), UserWarning, "", 0)
    warnings.formatwarning = before
    telemetry = Telemetry(tmp_path, "prior", 4, "tokens")
    telemetry.warn(EVIL[:-1])
    telemetry.close("finished")
    _print([ScoredCaption(1, EVIL, 3, -1.0, -1.0, -1.0, -1.0)], "image")
    found = capsys.readouterr()
    for text in (found.err, found.out, told):
        assert "owned" in text and not set(text) & set("\x1b\x07\x9b\r\u202e\ud83d"), text


def test_a_seed_is_escaped_in_a_gallery(tmp_path):
    image = Image.fromarray(np.zeros((2, 2, 3), np.uint8))
    gallery = Gallery(tmp_path, "t")
    gallery.put("a", [Drawing(image, "a", None, "<script>1</script>", 0, {})])
    gallery.write()
    assert "<script>1" not in (tmp_path / "index.html").read_text()
