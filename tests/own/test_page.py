"""The page and the gallery of a training, from what lies in its folder; and the line that draws more."""

import json
import re
import shlex

import pytest
from PIL import Image

from dalle.cli import arguments
from dalle.config import Sample
from dalle.data.counts import Counts
from dalle.data.sources.prepared import Prepared
from dalle.own import gallery
from dalle.own.gallery import draw_command, draw_gallery, read_rows
from dalle.own.plan_files import PlanFiles
from dalle.own.progress import Progress
from dalle.own.report import write_report


def _rows(folder, *captions):
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    rows = [{"caption": caption, "held_out": False, "real": "real/a.png", "drawn": ["b.png"]} for caption in captions]
    (folder / "gallery/rows.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("captions", "chosen"),
    [
        ([], "CAPTION"),
        (['a cat\'s "$HOME" `x`', "other"], 'a cat\'s "$HOME" `x`'),
        (["-n 3", "word " * 20, "a short one"], "a short one"),
        (["-n 3", "word " * 20], "word " * 20),
    ],
)
def test_the_line_draws_whatever_the_caption(tmp_path, captions, chosen):
    folder = tmp_path / "my pictures"
    _rows(folder, *captions)
    command, *words = shlex.split(draw_command(folder))
    config = arguments.parse(Sample, command, words, positional="caption")
    assert (command, config.model, config.caption, config.rerank) == ("dalle-sample", str(folder), chosen, True)


def test_captions_are_drawn_in_turn_while_there_is_time(models, shapes_folder, tmp_path, monkeypatch):
    from dalle.config import Images

    monkeypatch.setattr(gallery, "_MOST_CAPTIONS", 3)
    for name in ("prior", "dvae", "clip"):
        (tmp_path / name).symlink_to(models / name)
    shards = [f"{shapes_folder}/{split}-*.tar" for split in ("train", "valid")]
    said: list[str] = []
    rows = draw_gallery(tmp_path, *shards, Images(augmentation="none"), 2, 0, -1.0, said.append)
    # late as it is, two of each
    assert [row.held_out for row in rows] == [True, True, False, False] and rows == read_rows(tmp_path)
    assert said == ["2 held-out captions and 2 of the training, best of 2"]
    assert len({row.caption for row in rows}) == 4
    for row in rows:
        assert 1 <= len(row.drawn) <= 2 and all(
            (tmp_path / "gallery" / file).is_file() for file in (row.real, *row.drawn)
        )
    rows = draw_gallery(tmp_path, shards[0], None, Images(augmentation="none"), 1, 0, 600.0, said.append)
    assert [row.held_out for row in rows] == [False] * 3


def test_the_page_shows_what_each_stage_came_to(tmp_path):
    _rows(tmp_path, "a <b> cat")
    run = tmp_path / "prior"
    (run / "pictures").mkdir(parents=True)
    Image.new("RGB", (70, 20)).save(run / "pictures/samples-00000004.png")
    records = [{"step": n, "image_nats": 5.0 - n} for n in (1, 2, 4)]
    records += [{"step": n, "valid/image_nats": 6.0 - n} for n in (2, 4)] + [{"step": 4, "image_nats": float("nan")}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "report.html").write_text("")
    progress, files = Progress(tmp_path), PlanFiles(tmp_path / "plan")
    progress.begin("prior", {})
    progress.add("prior", 100.0, finished=True)
    files.write({"prior": {"run": {"steps": 4}}}, {}, {"said": ["a prior & more"]})
    left_out = Counts.from_json(
        {"read": 3, "filtered": {"too <small>": {"count": 2, "first": []}}, "broken": {}, "other_files": {}}
    )
    prepared = Prepared("a folder", 9, 1, "t", "v", left_out, 3.0, 9, 1.0, 32, ["9 <i> are kept"])
    write_report(tmp_path, prepared, files, progress, "my/<pictures>")
    page = (tmp_path / "report.html").read_text()
    assert "<b> cat" not in page and "a &lt;b&gt; cat" in page and "9 &lt;i&gt; are kept" in page
    assert "took 1 min 40 s, 4 updates, 2 nats a code, held out" in page
    assert 'image nats: <b class="train">training</b> 4 to 1, <b class="valid">held out</b> 4 to 2' in page
    # 70 px wide fits four times into a card, and what is read best lies lowest
    assert 'width="280" height="80"' in page
    points = re.findall(r'points="([^"]+)"', page)
    assert points == ["75.0,4.0 150.0,31.3 300.0,86.0", "150.0,4.0 300.0,58.7"]
    assert "a prior &amp; more" in page and 'href="plan/prior.yaml"' in page
    assert '<td class="number">2</td><td>images</td><td>filtered out</td><td>too &lt;small&gt;</td>' in page
