"""The commands that make tokenizers and tokens: what they refuse, what they report, what they leave behind."""

import io
import json

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from dalle.cli.data.tokenize import tokenize
from dalle.cli.data.train_tokenizer import train_tokenizer
from dalle.config import DVAEModel
from dalle.data.tokens import TokenShards
from dalle.text import Tokenizer


def test_a_tokenizer_needs_captions(tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    output = tmp_path / "tokenizer.json"
    for data, options, message in (
        ("", [], "no files were named"),
        (str(tmp_path / "empty.txt"), [], r"empty\.txt.* no caption"),
        (str(tmp_path / "latin.txt"), [], r"latin\.txt is not UTF-8"),
        (str(tmp_path / "gone.txt"), [], r"no such file: .*gone\.txt"),
        ("x.txt", ["--min_count", "-1"], "min_count -1: must be at least 1"),
        ("x.txt", ["--vocabulary", "255"], "vocabulary 255: must be at least 256"),
    ):
        with pytest.raises(ValueError, match=message):
            train_tokenizer(["--data", data, "--output", str(output), *options])
        assert not output.exists()


def test_a_tokenizer_learns_from_text_and_shards_with_spaces_in_their_paths(tmp_path, shapes_folder):
    (tmp_path / "some text.txt").write_text("zebra zebra\n")
    data = f"{tmp_path}/some\\ text.txt {shapes_folder}/train-*.tar"
    train_tokenizer(["--data", data, "--output", str(tmp_path / "tokenizer.json")])
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert len(tokenizer.encode("zebra")) == len(tokenizer.encode("circle")) == 1


@pytest.fixture(scope="module")
def dvae(tmp_path_factory):
    from dalle.models.dvae import DVAE
    from dalle.models.folder import save_weights

    folder = tmp_path_factory.mktemp("dvae")
    config = DVAEModel(image_size_px=32, codebook_size=16, encoder_width=8, blocks_per_group=1, decoder_input_width=8)
    save_weights(folder, "dvae", DVAE(config).state_dict(), config, {})
    return folder


def _write(path, widths_px):
    """Images of those widths and 32 rows; width 0 is one that does not decode."""
    with wds.TarWriter(str(path)) as tar:
        for i, width_px in enumerate(widths_px):
            buffer = io.BytesIO()
            if width_px:
                Image.fromarray(np.full((32, width_px, 3), i, np.uint8)).save(buffer, "PNG")
            tar.write({"__key__": f"{i:04d}", "png": buffer.getvalue() or b"broken", "txt": f"number {i}"})


def test_tokenize_keeps_the_order_and_reports_what_it_left_out(tmp_path, dvae, capsys):
    _write(tmp_path / "some.tar", [32] * 70 + [100])
    arguments = ["--dvae", str(dvae), "--output", str(tmp_path / "tokens"), "--pairs_per_shard", "40"]
    tokenize(["--data", str(tmp_path / "some.tar"), *arguments])
    assert "70 pairs in 2 token shards" in (out := capsys.readouterr().out)
    assert (
        "of 71 samples 70 were used, 1 filtered out, 0 broken (1 × longer than images.max_aspect_ratio 2 times" in out
    )
    assert "0070 (100×32)" in out
    shards = TokenShards(tmp_path / "tokens")
    assert [shards.pair(*divmod(i, 40))[1] for i in range(70)] == [[f"number {i}"] for i in range(70)]


def test_tokens_are_the_codes_of_fp32_and_say_so(tmp_path):
    """Of a dVAE whose two likeliest codes are never closer than 8e-4, a hundred times what fp32 rounds, and closer than what
    bf16 does at some 40 of 1,024 places."""
    from dalle.models.dvae import DVAE
    from dalle.models.folder import save_weights

    noise_NYX3 = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    with wds.TarWriter(str(tmp_path / "some.tar")) as tar:
        for i, image_YX3 in enumerate(noise_NYX3):
            buffer = io.BytesIO()
            Image.fromarray(image_YX3).save(buffer, "PNG")
            tar.write({"__key__": f"{i:04d}", "png": buffer.getvalue(), "txt": "noise"})
    noise_NCYX = torch.from_numpy(noise_NYX3).permute(0, 3, 1, 2)
    torch.manual_seed(3)
    sizes = {"image_size_px": 32, "codebook_size": 16, "encoder_width": 8, "blocks_per_group": 1}
    model = DVAE(DVAEModel(**sizes, decoder_input_width=8, init="he"))
    with torch.no_grad():
        model.encoder.blocks.output.conv.bias -= model.logits(noise_NCYX).mean((0, 2, 3))  # so that all codes are met
        expected_NI = model.encode(noise_NCYX).flatten(1).numpy()
    dvae = tmp_path / "dvae"
    save_weights(dvae, "dvae", model.state_dict(), model.config, {})
    found = {}
    for precision in ("fp32", "bf16"):
        chosen = [] if precision == "fp32" else ["--precision", precision]
        output = tmp_path / precision
        tokenize(["--data", str(tmp_path / "some.tar"), "--dvae", str(dvae), "--output", str(output), *chosen])
        assert json.loads((output / "meta.json").read_text())["precision"] == precision
        shards = TokenShards(output)
        assert shards.meta.precision == precision
        found[precision] = np.stack([shards.pair(0, row)[0] for row in range(64)])
    assert len(np.unique(expected_NI)) == 16
    assert np.array_equal(found["fp32"], expected_NI)
    assert not np.array_equal(found["bf16"], expected_NI)
    # what an earlier version wrote does not say it
    meta = json.loads((tmp_path / "bf16/meta.json").read_text())
    del meta["precision"]
    (tmp_path / "bf16/meta.json").write_text(json.dumps(meta))
    assert TokenShards(tmp_path / "bf16").meta.precision is None


def test_tokenize_that_fails_midway_leaves_nothing(tmp_path, dvae):
    _write(tmp_path / "bad.tar", [32] * 150 + [0] * 50)
    with pytest.raises(ValueError, match="max_bad_fraction"):
        tokenize(["--data", str(tmp_path / "bad.tar"), "--dvae", str(dvae), "--output", str(tmp_path / "tokens")])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"]
