"""The contact sheet shows every caption's real image and first drawing, at its place."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

_spec = importlib.util.spec_from_file_location("contact_sheet", ROOT / "tools/contact_sheet.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


@pytest.fixture
def evaluation(tmp_path):
    """Three captions, of which the first and the last have the same real image."""
    folder = tmp_path / "evaluation"
    captions = [{"prompt": f"caption {n}", "real": digest} for n, digest in enumerate(("same", "other", "same"))]
    for number in range(3):
        (folder / f"samples/{number:05}/samples").mkdir(parents=True)
        Image.new("RGB", (16, 16), (0, 0, 50 * number)).save(folder / f"samples/{number:05}/samples/0000.png")
    (folder / "real").mkdir()
    for number, red in ((1, 100), (2, 200)):
        Image.new("RGB", (16, 16), (red, 0, 0)).save(folder / f"real/{number:05}.png")
    (folder / "manifest.json").write_text(json.dumps({"captions": captions}))
    return folder


def test_each_pair_is_at_its_place(evaluation, tmp_path, capsys):
    output, captions = tmp_path / "sheet.png", tmp_path / "captions.txt"
    tool.main([str(evaluation), str(output), "--side_px", "8", "--columns", "2", "--captions", str(captions)])
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
    (evaluation / "samples/00001/samples/0000.png").unlink()
    with pytest.raises(SystemExit, match=r"00001/samples/0000.png: is missing"):
        tool.main([str(evaluation), str(tmp_path / "sheet.png")])
    (evaluation / "manifest.json").write_text(json.dumps({"captions": [{"prompt": "x"}]}))
    with pytest.raises(SystemExit, match="caption 0 has no real image"):
        tool.main([str(evaluation), str(tmp_path / "sheet.png")])
