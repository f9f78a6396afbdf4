"""The contact sheet shows every caption's real image and first drawing, at its place."""

import importlib.util
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from dalle.evaluation.steps.reference import read_reference
from tests.conftest import ROOT

_spec = importlib.util.spec_from_file_location("contact_sheet", ROOT / "tools/contact_sheet.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


@pytest.fixture
def evaluation(tmp_path):
    """Three captions, of which the first and the last have the same real image."""
    folder = tmp_path / "evaluation"
    samples = []
    for number, red in enumerate((200, 100, 200)):
        (folder / f"samples/{number:05}/samples").mkdir(parents=True)
        Image.new("RGB", (16, 16), (0, 0, 50 * number)).save(folder / f"samples/{number:05}/samples/0000.png")
        samples.append({"png": _png(red), "txt": f"caption {number}".encode()})
    _shard(tmp_path / "valid-000.tar", samples)
    reference = read_reference(str(tmp_path / "valid-000.tar"), 16, None)
    captions = [{"prompt": f"caption {n}", "real": digest} for n, digest in enumerate(reference.digests)]
    request = {"reference": "elsewhere.tar", "most": None}
    (folder / "manifest.json").write_text(json.dumps({"captions": captions, "request": request}))
    return folder


def _png(red):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (red, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def _shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                info = tarfile.TarInfo(f"{number:05}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_each_pair_is_at_its_place(evaluation, tmp_path, capsys):
    output, captions = tmp_path / "sheet.png", tmp_path / "captions.txt"
    options = ["--side_px", "8", "--columns", "2", "--reference", str(tmp_path / "valid-000.tar")]
    tool.main([str(evaluation), str(output), *options, "--captions", str(captions)])
    image = np.asarray(Image.open(output))
    assert image.shape == (8 + 4 + 8, 2 * 16 + 4, 3)
    for place, (red, blue) in enumerate(((200, 0), (100, 50), (200, 100))):
        y, x = 12 * (place // 2), 20 * (place % 2)
        assert (image[y : y + 8, x : x + 8] == (red, 0, 0)).all()
        assert (image[y : y + 8, x + 8 : x + 16] == (0, 0, blue)).all()
    assert (image[:8, 16:20] == 255).all() and (image[12:, 20:] == 255).all()
    assert captions.read_text() == "caption 0\ncaption 1\ncaption 2\n"
    assert "3 captions" in capsys.readouterr().out


def test_what_is_missing_is_named(evaluation, tmp_path):
    given = [str(evaluation), str(tmp_path / "sheet.png"), "--reference", str(tmp_path / "valid-000.tar")]
    with pytest.raises(SystemExit, match=r"elsewhere.tar"):
        tool.main(given[:2])
    manifest = json.loads((evaluation / "manifest.json").read_text())
    manifest["captions"][1]["real"] = "0"
    (evaluation / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match=r"1 captions have no real image .*caption 1"):
        tool.main(given)
    (evaluation / "samples/00001/samples/0000.png").unlink()
    with pytest.raises(SystemExit, match=r"00001/samples/0000.png"):
        tool.main(given)


def test_several_evaluations_stand_beside_each_other(evaluation, tmp_path):
    other, output = tmp_path / "other", tmp_path / "sheet.png"
    shutil.copytree(evaluation, other)
    for number in range(3):
        Image.new("RGB", (16, 16), (0, 70 * number, 0)).save(other / f"samples/{number:05}/samples/0000.png")
    given = [str(evaluation), str(other), str(output), "--reference", str(tmp_path / "valid-000.tar")]
    tool.main([*given, "--side_px", "8", "--columns", "1", "--most", "2"])
    image = np.asarray(Image.open(output))
    assert image.shape == (8 + 4 + 8, 24, 3)
    for y, colours in ((0, [(200, 0, 0), (0, 0, 0), (0, 0, 0)]), (12, [(100, 0, 0), (0, 0, 50), (0, 70, 0)])):
        for x, colour in zip((0, 8, 16), colours, strict=True):
            assert (image[y : y + 8, x : x + 8] == colour).all()
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["captions"][2]["prompt"] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match=r"other: not the captions and real images of .*evaluation"):
        tool.main(given)
    with pytest.raises(SystemExit):
        tool.main([*given, "--most", "0"])
