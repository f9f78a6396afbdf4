"""Scores of captions against plain cross-entropies, their order, the files that are read, and the command."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dalle.cli import arguments, caption
from dalle.config import DVAEModel, PriorModel
from dalle.config import PriorObjective as PriorObjectiveConfig
from dalle.data.images import centre_crop
from dalle.models.dvae import DVAE
from dalle.models.folder import load_prior, save_weights
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective
from dalle.sampling.captioning import image_codes, ln_p, read_captions_file, read_prompts_file, score
from dalle.sampling.loading import load
from dalle.sampling.pipeline import Pipeline
from dalle.text import PAD, Tokenizer

CAPTIONS = ["a red circle", "a red circle above a blue square", "a", "blue", "a green cross", "two of them"]
COLOURS = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
IMAGE = Image.fromarray(COLOURS.repeat(10, axis=0).repeat(10, axis=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prior and a dVAE of random weights: large ones, so that what they see shows."""
    folder = tmp_path_factory.mktemp("captioning")
    torch.manual_seed(0)
    dvae = DVAE(
        DVAEModel(
            image_size_px=32, codebook_size=11, encoder_width=8, width_multipliers=(1, 2, 2, 2), blocks_per_group=1,
            decoder_input_width=8, init="he",
        )
    )  # fmt: skip
    with torch.no_grad():  # so that no code is the likeliest everywhere
        pixels_1CYX = torch.from_numpy(np.array(centre_crop(IMAGE, 32))).permute(2, 0, 1)[None]
        dvae.encoder.blocks.output.conv.bias -= dvae.logits(pixels_1CYX).mean((0, 2, 3))
    tokenizer = Tokenizer.train(CAPTIONS, vocabulary=290, min_count=1)
    sizes = PriorModel(
        text_slots=24, grid=4, text_vocabulary=290, codebook_size=11, width=32, depth=4, heads=2, conv_kernel=3
    )
    prior = Prior(sizes)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    dvae_hash = save_weights(folder / "dvae", "dvae", dvae.state_dict(), dvae.config, {})
    links = {"dvae_hash": dvae_hash, "tokenizer_hash": tokenizer.hash}
    save_weights(folder / "prior", "prior", prior.state_dict(), sizes, links)
    tokenizer.save(folder / "prior/tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return load(folder, rerank=False, device="cpu")


def _by_caption(scored):
    return {row.caption: row for row in scored}


def test_scores_are_the_plain_cross_entropies(pipeline):
    scored = _by_caption(score(pipeline, IMAGE, CAPTIONS))
    codes_1I = image_codes(pipeline, IMAGE)[None]
    assert len(codes_1I.unique()) > 2
    with torch.no_grad():
        _, logits = pipeline.prior(torch.full((1, 23), PAD), codes_1I)
        without = -F.cross_entropy(logits[0], codes_1I[0], reduction="sum").item()
        for text in CAPTIONS:
            text_1U = pipeline.tokens([text])
            text_logits, image_logits = pipeline.prior(text_1U, codes_1I)
            row = scored[text]
            ln_p_text = -F.cross_entropy(text_logits[0], text_1U[0], ignore_index=PAD, reduction="sum").item()
            ln_p_image = -F.cross_entropy(image_logits[0], codes_1I[0], reduction="sum").item()
            # sums of some twenty fp32 numbers, in products of another shape
            assert row.ln_p_text == pytest.approx(ln_p_text, rel=1e-5)
            assert row.ln_p_image == pytest.approx(ln_p_image, rel=1e-5)
            assert row.gain == pytest.approx(ln_p_image - without, abs=1e-3)
            assert row.ln_p_joint == pytest.approx(ln_p_text + ln_p_image, rel=1e-5)
            assert row.tokens == (text_1U != PAD).sum().item()


def test_broken_weights_are_named(pipeline, monkeypatch):
    for head in ("text_head", "image_head"):
        weight_VD = getattr(pipeline.prior, head).weight
        broken_VD = weight_VD.detach().clone()
        broken_VD[5] = math.nan
        with monkeypatch.context() as patched:
            patched.setattr(weight_VD, "data", broken_VD)
            with pytest.raises(ValueError, match="the prior's logits are not finite"):
                score(pipeline, IMAGE, CAPTIONS)
    assert score(pipeline, IMAGE, CAPTIONS)


def test_captions_are_scored_alike_before_and_after_drawing(folder):
    """Whose products are laid out for the steps of a drawing. In fp32 the prior is read again."""
    fresh, used = (load(folder, rerank=False, device="cpu") for _ in range(2))
    used.generate("a red circle", n=1)
    for precision in ("bf16", "fp32"):
        assert score(used, IMAGE, CAPTIONS, precision=precision) == score(fresh, IMAGE, CAPTIONS, precision=precision)
    whole = Pipeline(load_prior(folder / "prior"), used.dvae, used.tokenizer)
    assert score(whole, IMAGE, CAPTIONS, precision="bf16") == score(used, IMAGE, CAPTIONS, precision="bf16")


def test_batches_are_bounded_and_change_nothing(pipeline, monkeypatch):
    expected = score(pipeline, IMAGE, CAPTIONS)
    states, widths = pipeline.prior.states, []

    def recorded(text_BU, codes_BI):
        widths.append(len(text_BU))
        return states(text_BU, codes_BI)

    monkeypatch.setattr(pipeline.prior, "states", recorded)
    monkeypatch.setattr("dalle.models.cross_entropy.CHUNK_ROWS", {"cpu": 7})  # which cuts through captions
    # six captions and none; one width for all batches, with as little over as can be
    for batch_size, made in ((1, [1] * 7), (3, [3] * 3), (4, [4] * 2), (6, [4] * 2), (100, [7])):
        widths.clear()
        found = score(pipeline, IMAGE, CAPTIONS, batch_size=batch_size)
        assert widths == made
        assert [row.caption for row in found] == [row.caption for row in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.ln_p_text == pytest.approx(theirs.ln_p_text, rel=1e-5)
            assert ours.ln_p_image == pytest.approx(theirs.ln_p_image, rel=1e-5)


def test_ranked_by_the_image_or_by_both(pipeline):
    twice = [*CAPTIONS, "A red  circle"]
    by_image, by_joint = (score(pipeline, IMAGE, twice, rank_by=by) for by in ("image", "joint"))
    for scored, key in ((by_image, "ln_p_image"), (by_image, "gain"), (by_joint, "ln_p_joint")):
        values = [getattr(row, key) for row in scored]
        assert values == sorted(values, reverse=True)
        assert [row.rank for row in scored] == list(range(1, 8))
    assert [row.caption for row in by_image] != [row.caption for row in by_joint]
    for scored in (by_image, by_joint):  # the same tokens, so the same scores but for rounding
        order = [row.caption for row in scored]
        assert abs(order.index("A red  circle") - order.index("a red circle")) == 1


def test_every_token_makes_a_text_less_likely(pipeline):
    """Why ln p(caption) does not compare captions of different lengths: there is no end token."""
    words = ["a", "red", "circle", "above", "a", "blue", "square"]
    texts = [" ".join(words[: n + 1]) for n in range(len(words))]
    scored = _by_caption(score(pipeline, IMAGE, texts))
    values = [scored[text].ln_p_text for text in texts]
    assert values == sorted(values, reverse=True)


def test_sixteen_bits_are_close(pipeline):
    exact, rounded = (_by_caption(score(pipeline, IMAGE, CAPTIONS, precision=p)) for p in ("fp32", "bf16"))
    assert exact != rounded
    for text in CAPTIONS:
        # of logits some 5 in size, 8 bits round 0.02 away, in each of 16 codes
        assert rounded[text].ln_p_image == pytest.approx(exact[text].ln_p_image, abs=1.0)


def test_the_central_square_is_read(pipeline):
    square = IMAGE.crop((10, 0, 60, 50))
    pixels_YX3 = np.asarray(centre_crop(square, 32))
    codes_YX = pipeline.dvae.encode(torch.from_numpy(pixels_YX3.copy()).permute(2, 0, 1)[None])[0]
    assert torch.equal(image_codes(pipeline, IMAGE), codes_YX.flatten())
    assert not torch.equal(image_codes(pipeline, IMAGE.crop((0, 0, 50, 50))), codes_YX.flatten())


def test_a_trained_prior_knows_the_caption_and_gains_by_it():
    """Two captions, two images, and every third pair without its caption."""
    torch.manual_seed(0)
    sizes = PriorModel(
        text_slots=4, grid=2, text_vocabulary=9, codebook_size=7, width=32, depth=2, heads=2, conv_kernel=3
    )
    objective = PriorObjective(Prior(sizes), PriorObjectiveConfig())
    text_BU = torch.tensor([[1, 2, PAD], [3, PAD, PAD], [PAD] * 3] * 2)
    codes_BI = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0], [0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 0], [4, 5, 6, 0]])
    text_BU[3] = text_BU[0]
    batch = {"text_BU": text_BU, "codes_BI": codes_BI, "text_targets": torch.tensor(6.0)}
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()
    for right, wrong in ((0, 1), (1, 0)):
        rows = torch.cat([text_BU[2:3], text_BU[right : right + 1], text_BU[wrong : wrong + 1]])
        _, (without, known, mistaken) = ln_p(objective.model.eval(), rows, codes_BI[right], 8, "fp32")
        # one of two images: ln 2 is what there is to know
        assert (known - without).item() == pytest.approx(np.log(2), abs=0.1)
        assert known > -0.1
        assert mistaken < without - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": []}, "none to score"),
        ({"captions": ["a", " "]}, "empty"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank_by": "text"}, "rank_by text"),
    ],
)
def test_refusals(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        score(**{"pipeline": pipeline, "image": IMAGE, "captions": CAPTIONS, **options})


def test_what_is_cut_off_is_shown_and_the_rest_scored(pipeline):
    text = "1 2 3 4 5 6 7 8 9 1 2 3 4 zebra"
    with pytest.warns(UserWarning, match="cut off: .*zebra"):
        (row,) = score(pipeline, IMAGE, [text])
    assert (row.caption, row.tokens) == (text, 23)


def test_files_of_captions(tmp_path):
    text, lines = tmp_path / "captions.txt", tmp_path / "captions.jsonl"
    text.write_bytes("\ufeffa red circle\r\n\r\n  ein grünes Kreuz \n".encode())
    assert read_captions_file(text) == ["a red circle", "ein grünes Kreuz"]
    lines.write_text('{"caption": "a red circle", "score": 1}\n\n{"caption": "ein gr\\u00fcnes Kreuz"}')
    assert read_captions_file(lines) == ["a red circle", "ein grünes Kreuz"]
    assert read_prompts_file(text) == [{"prompt": "a red circle"}, {"prompt": "ein grünes Kreuz"}]
    lines.write_text('{"tag": "colors", "prompt": "a"}\n{"caption": "b", "score": 1}\n{"caption": "c", "prompt": "d"}')
    assert read_captions_file(lines) == ["a", "b", "c"]
    assert read_prompts_file(lines) == [
        {"tag": "colors", "prompt": "a"},
        {"caption": "b", "score": 1, "prompt": "b"},
        {"caption": "c", "prompt": "c"},
    ]
    for content, message in (
        ('{"caption": "a"}\n{"caption": " "}', r"captions\.jsonl, line 2: the caption is empty"),
        ('{"caption": "a"}\n\nred circle', "line 3: must be an object"),
        ('{"text": "a"}', "line 1: must be an object"),
        ('{"prompt": 5}', "line 1: must be an object"),
        ('{"caption": 5}', "line 1: must be an object"),
        ('{"caption": "a"}\n{"caption": "a", "caption": "b"}', r"line 2: must be an object .*, with each key once$"),
        ('{"caption": "a"}\n{"caption": "a \\ud800"}', "line 2: the caption holds half a character"),
        (" \n", "has no caption"),
    ):
        lines.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_captions_file(lines)
    for name in ("c.csv", "c.TSV", "c.json"):
        (text.parent / name).write_text("number,caption\n1,a red circle\n")
        with pytest.raises(
            ValueError, match=rf"captions .*{name}: its lines are no captions; write one a line as \.txt"
        ):
            read_captions_file(text.parent / name)
    lines.rename(text.parent / "c.JSONL").write_text('{"caption": "a"}')
    assert read_captions_file(text.parent / "c.JSONL") == ["a"]
    text.write_bytes(b"a \xff circle")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_captions_file(text)


@pytest.fixture
def files(tmp_path):
    """An image and captions for the command."""
    IMAGE.save(tmp_path / "picture.png")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jsonl").write_text('{"caption": ""}')
    return tmp_path


def test_command_prints_a_table_or_json(folder, files, pipeline, capsys):
    given = ["--model", str(folder), "--captions", str(files / "captions.txt"), str(files / "picture.png")]
    expected = score(pipeline, IMAGE, CAPTIONS, "joint")
    caption.caption([*given, "--rank_by", "joint"])
    head, *rows, note = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "rank"
    assert [row.split(maxsplit=5)[5] for row in rows] == [row.caption for row in expected]
    numbers = [float(cell) for cell in rows[0].split()[:5]]
    first = expected[0]
    assert numbers == pytest.approx([1, first.ln_p_image, first.gain, first.ln_p_text, first.ln_p_joint], abs=0.011)
    assert "ranked by ln p(caption, image)" in note
    caption.caption([*given, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["rank_by"] == "image"
    assert found["models"] == pipeline.hashes
    assert [row["caption"] for row in found["captions"]] == [row.caption for row in score(pipeline, IMAGE, CAPTIONS)]
    assert found["captions"][0]["rank"] == 1


@pytest.mark.parametrize(
    ("image", "captions", "more", "words"),
    [
        ("gone.png", "captions.txt", [], ["image", "gone.png: No such file"]),
        ("text.png", "captions.txt", [], ["image", "text.png: image does not decode"]),
        ("picture.png", "gone.txt", [], ["captions", "gone.txt: No such file"]),
        ("picture.png", "empty.jsonl", [], ["line 1: the caption is empty"]),
        ("picture.png", "captions.txt", ["--rank_by", "text"], ["rank_by text", "one of image, joint"]),
        ("picture.png", "captions.txt", ["--batch_size", "0"], ["batch_size 0"]),
        ("picture.png", None, [], ["missing: --captions"]),
        (
            "picture.png",
            "captions.txt",
            ["--model", "nowhere"],
            ["model nowhere: no such folder, and no such ready model"],
        ),
    ],
)
def test_bad_input_is_one_line(folder, files, monkeypatch, capsys, image, captions, more, words):
    words_given = ["--model", str(folder), str(files / image), *more]
    if captions:
        words_given += ["--captions", str(files / captions)]
    monkeypatch.setattr(sys, "argv", ["dalle-caption", *words_given])
    monkeypatch.setattr(arguments, "keep_freed_memory", lambda: None)  # of the tests' own process
    with pytest.raises(SystemExit) as left:
        caption.main()
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    for word in words:
        assert word in line
