"""What is given away: checked, with a card, listed, and nothing else; and what comes back draws the very same."""

import re
import subprocess

import numpy as np
import pytest
import yaml

import dalle
from dalle.cli.publish import publish
from dalle.config import Publish, Sampling
from dalle.ready.card import is_ours
from dalle.ready.facts import drawing_line, in_millions, read_card
from dalle.ready.files import public_config, without_places
from tests.models.test_strange_weights import _claim

QUICK = {"n": 2, "keep": 2, "sampling": Sampling(chunk=2, precision="fp32")}
NOBODY = "http://127.0.0.1:9"
"""Where nobody listens."""
SAID = ["--licence", "mit", "--about", "Circles: mostly.", "--example", "a red circle", "--hardware", "two CPU cores"]


def test_what_is_published_draws_the_same_pixels(hub, whole, capsys):
    publish([str(whole), "--repo", "someone/tiny", *SAID])
    said = capsys.readouterr().out
    ours = dalle.load(whole, device="cpu", precision="fp32").generate("a red circle", **QUICK)
    theirs = dalle.load("someone/tiny", device="cpu", precision="fp32").generate("a red circle", **QUICK)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(ours, theirs, strict=True))
    repository = hub.repositories["someone/tiny"]
    assert not repository.private
    commit, files = list(repository.commits.items())[-1]
    assert f"--model someone/tiny@{commit}" in said
    parts = [f"{part}/{name}" for part in ("prior", "dvae", "clip") for name in ("model.safetensors", "config.yaml")]
    tokenizers = [f"{part}/tokenizer.json" for part in ("prior", "clip")]
    expected = {".gitattributes", "README.md", "ATTRIBUTION.md", *parts, *tokenizers}
    assert {name for name in files if not name.endswith("words.json")} == expected
    for name, content in files.items():  # each listed with its size, and no place of the machine in any
        assert b"secret" not in content, name
        if name != ".gitattributes":
            assert re.search(rf"  {re.escape(name)} +{len(content) / 1e6:.3f} MB\n", said), name
    assert yaml.safe_load(files["dvae/config.yaml"])["data"] == "icons/train-{000..006}.tar more/train-000.tar"
    assert files["README.md"].decode() == (whole / "README.md").read_text()
    assert re.search(r"\n1\d other files of .* stay here\n", said)


def test_the_card_says_all_that_is_known(whole):
    publish([str(whole), *SAID])
    text = (whole / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["library_name"], front["pipeline_tag"]) == ("mit", "dalle", "text-to-image")
    assert "text-to-image" in front["tags"] and front["widget"] == [{"text": "a red circle"}]
    for words in (
        "# mine\n\nCircles: mostly.\n",
        'dalle-sample --model mine "a red circle"\n',
        'dalle.load("mine").generate("a red circle", n=32, keep=4)',
        "| `dvae` | discrete VAE |",
        "image size px 32, grid 4, codebook size 16 |",
        "- Drawn scenes: 64 images, MIT\n",
        "run.steps 600; run.batch_size 128; optimizer.step_size.start 0.001; caption_dropout 0.1; data icons/train-{000..006}.tar",
        "| `prior` | 600 | 1.00 | loss 1.125 |",
        "Trained on two CPU cores.",
    ):
        assert words in text, words
    assert "secret" not in text
    card = read_card(whole / "README.md")
    assert (card.about, card.licence, card.example) == ("Circles: mostly.", "mit", "a red circle")


def test_figures_come_from_where_the_trainings_are(whole, made, tmp_path):
    for part in ("prior", "dvae", "clip"):
        (whole / part / "metrics.jsonl").unlink()
    publish([str(whole)])
    assert "## Figures" not in (whole / "README.md").read_text()
    publish([str(whole), "--runs", str(made)])
    assert "| `clip` | 600 | 1.00 | loss 1.125 |" in (whole / "README.md").read_text()
    (whole / "metrics.json").write_text('{"judged": {"samples": {"clip_score": 83.5}, "judge": "clip:4ff97938"}}')
    publish([str(whole)])
    assert "| judged.samples.clip_score | 83.5 |" in (whole / "README.md").read_text()
    (whole / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics.json is damaged"):
        publish([str(whole)])


def test_our_card_is_written_anew_and_a_persons_stays(whole, capsys):
    publish([str(whole), *SAID])
    first = (whole / "README.md").read_text()
    assert is_ours(whole / "README.md")
    publish([str(whole), "--licence", "apache-2.0"])  # what is not said stays as it was
    card = read_card(whole / "README.md")
    assert (card.about, card.licence, card.example) == ("Circles: mostly.", "apache-2.0", "a red circle")
    theirs = first.replace("Circles: mostly.", "Circles: all of them.")
    (whole / "README.md").write_text(theirs)
    assert not is_ours(whole / "README.md")
    capsys.readouterr()
    publish([str(whole)])
    assert (whole / "README.md").read_text() == theirs and "a person wrote it, and stays" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"licence mit: .*README.md is as a person wrote it.*--card overwrite"):
        publish([str(whole), "--licence", "mit"])
    publish([str(whole), "--card", "overwrite", "--licence", "mit"])
    assert is_ours(whole / "README.md") and "Circles: all of them." in (whole / "README.md").read_text()


def test_weights_that_only_claim_a_hash_are_not_published(hub, whole):
    """They load, for their checksums are right; others would know them by a hash that is another's."""
    _claim(whole / "prior", hash="0" * 64)
    with pytest.raises(
        ValueError, match=r"prior/model.safetensors: its weights are not those that its hash stands for"
    ):
        publish([str(whole), "--repo", "someone/tiny"])
    assert hub.asked == []


def test_headings_of_the_attribution_are_below_the_cards_own(whole):
    (whole / "ATTRIBUTION.md").write_text("# Images\n\n## Emoji\n\n- one\n\n### Parts\n\n# Others\n")
    publish([str(whole)])
    text = (whole / "README.md").read_text()
    assert "## Training data and licences\n\n### Emoji\n\n- one\n\n#### Parts\n\n## Others\n" in text


@pytest.mark.parametrize("before", ["# Title", "<p>logo</p>", "![logo](logo.png)", "| a | b |", "\n\n"])
def test_what_a_model_draws_is_the_first_line_of_text(tmp_path, before):
    path = tmp_path / "README.md"
    path.write_text(f"---\nlicense: mit\n---\n{before}\n\nCircles,\nmostly.\n\nMore.\n")
    assert read_card(path).about == "Circles, mostly."


@pytest.mark.parametrize(
    ("count", "said"),
    [(99_999, "99,999"), (100_000, "0.1 M"), (3_800_000, "3.8 M"), (12_290_000_000, "12290.0 M")],
)
def test_counts_as_one_says_them(count, said):
    assert in_millions(count) == said


def test_a_training_that_was_stopped_is_told(whole):
    (whole / "prior/run.json").write_text('{"status": "stopped"}')
    (whole / "clip/run.json").unlink()
    publish([str(whole)])
    text = (whole / "README.md").read_text()
    assert "| `prior` | 600 (stopped) | 1.00 |" in text and "| `clip` | 600 | 1.00 |" in text


def test_what_is_not_said_again_stays_on_the_card(whole, made, hub):
    """As in the docs: figures and hardware are said once, and the upload comes later."""
    for part in ("prior", "dvae", "clip"):
        (whole / part / "metrics.jsonl").unlink()
    publish([str(whole), "--runs", str(made), *SAID])
    first = (whole / "README.md").read_text()
    figures = first[first.index("## Figures") : first.index("<!--")]
    assert "| `clip` | 600 | 1.00 | loss 1.125 |" in figures and "Trained on two CPU cores." in figures
    publish([str(whole)])
    assert (whole / "README.md").read_text() == first
    publish([str(whole), "--repo", "someone/tiny"])
    assert figures in (whole / "README.md").read_text()
    publish([str(whole), "--hardware", "a watch"])
    text = (whole / "README.md").read_text()
    assert text.partition("<!--")[0] == first.replace("two CPU cores", "a watch").partition("<!--")[0]
    (whole / "metrics.json").write_text('{"clip_score": 83.5}')  # what is found now takes the place of what was
    publish([str(whole)])
    text = (whole / "README.md").read_text()
    assert "| clip_score | 83.5 |" in text and "| `clip` | 600 |" not in text and "Trained on a watch." in text
    (whole / "README.md").write_text(text.replace("watch", "clock"))
    with pytest.raises(ValueError, match=r"hardware a boat: .*README.md is as a person wrote it"):
        publish([str(whole), "--hardware", "a boat"])


@pytest.mark.parametrize("caption", ["a cat", 'the "cat"', "$(touch ran) `touch ran` a cat!", "it's\\", "a 🐈 in 4 °C"])
def test_the_command_on_a_card_draws_the_caption_in_a_shell(whole, tmp_path, caption):
    """And runs nothing that the caption of somebody else's model asks for."""
    line = drawing_line("mine of me;ls", caption)
    said = f'dalle-sample() {{ printf "%s\\0" "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", said], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\0") == ["--model", "mine of me;ls", caption, ""]
    assert not list(tmp_path.glob("ran"))
    publish([str(whole), "--example", caption])
    assert f"\n{drawing_line('mine', caption)}\n```" in (whole / "README.md").read_text()
    assert read_card(whole / "README.md").example == caption


def test_what_a_card_of_somebody_else_says_is_in_one_line(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: [mit]\nwidget:\n- text: |\n    a cat\n    ```\n    rm\n---\nAbout\nit.\n")
    card = read_card(path)
    assert (card.about, card.licence, card.example) == ("About it.", "['mit']", "a cat ``` rm")
    lines = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'x'}]" for i in range(20))
    path.write_text(f"---\n{lines}\nlicense: *a19\n---\nAbout it.\n")
    assert read_card(path).licence == "unknown" and read_card(path).about == "About it."


BOMB = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'x'}]" for i in range(20))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "its references add up to too much"), ("&a [*a]", "refers to itself"), ("[" * 5000, "nested more than 50"),
        ("{", "expected the node content"), ("[1]", "it holds no settings"), ("just text", "it holds no settings"),
        ("a: 1\na: 2", "key 'a' is there twice"), ("a: b\n" * 50_000, "more than the 200,000 bytes"), (b"\xff\xfe", "it is not UTF-8"),
    ],
)  # fmt: skip
def test_settings_that_are_none_do_not_leave(whole, tmp_path, text, said):
    path = whole / "prior/config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for does in (lambda: publish([str(whole), "--dry_run"]), lambda: public_config(path)):
        with pytest.raises(ValueError, match=rf"prior/config.yaml cannot be read: .*{said}") as raised:
            does()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_links_to_other_files_of_the_machine_do_not_leave(hub, whole, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a key")
    for name in (
        "README.md",
        "ATTRIBUTION.md",
        "prior/config.yaml",
        "prior/tokenizer.words.json",
        "dvae/tokenizer.json",
    ):
        before = (whole / name).read_bytes() if (whole / name).exists() else None
        (whole / name).unlink(missing_ok=True)
        (whole / name).symlink_to(secret)
        with pytest.raises(ValueError, match=rf"{name}: is a link to {secret}, and what leaves"):
            publish([str(whole), "--repo", "someone/tiny"])
        (whole / name).unlink()
        if before is not None:
            (whole / name).write_bytes(before)
    (whole / "dvae/tokenizer.json").write_text("a key")
    with pytest.raises(ValueError, match=r"dvae/tokenizer.json is not a tokenizer file"):
        publish([str(whole), "--repo", "someone/tiny"])
    (whole / "dvae/tokenizer.json").unlink()
    assert hub.asked == []
    # a part that lies elsewhere, and weights that do, are known by what they are
    for name in ("clip", "prior/model.safetensors"):
        (whole / name).rename(tmp_path / "elsewhere")
        (whole / name).symlink_to(tmp_path / "elsewhere")
        publish([str(whole), "--dry_run"])
        (whole / name).unlink()
        (tmp_path / "elsewhere").rename(whole / name)


def test_text_in_another_encoding_is_named(whole):
    (whole / "ATTRIBUTION.md").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"ATTRIBUTION.md cannot be read: it is not UTF-8"):
        publish([str(whole)])
    (whole / "ATTRIBUTION.md").unlink()
    (whole / "README.md").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"README.md cannot be read: it is not UTF-8"):
        publish([str(whole)])


def test_tables_of_the_card_hold_what_stands_in_settings(whole):
    (whole / "prior/config.yaml").write_text("data: 'a|b <script>x</script>\n  train-*.tar'\n")
    publish([str(whole)])
    assert r"| `prior` | data a\|b &lt;script>x&lt;/script> train-\*.tar |" in (whole / "README.md").read_text()


def test_a_card_that_says_it_already_is_not_written(whole, monkeypatch):
    """So that a folder that one may only read is published."""
    publish([str(whole), *SAID])
    before = (whole / "README.md").stat().st_mtime_ns
    monkeypatch.setattr("dalle.cli.publish.claimed_file", None)
    publish([str(whole)])
    assert (whole / "README.md").stat().st_mtime_ns == before


def test_an_empty_repository_is_filled(hub, whole):
    """One that a person made on the Hub's pages, or that an upload which was cut off has left."""
    hub.put("someone/tiny", {".gitattributes": b"x"})
    with pytest.raises(ValueError, match=r"^repo someone/tiny: is there already and public"):
        publish([str(whole), "--repo", "someone/tiny", "--private"])
    publish([str(whole), "--repo", "someone/tiny"])
    assert "prior/model.safetensors" in list(hub.repositories["someone/tiny"].commits.values())[-1]
    hub.put("someone/notes", {"notes.txt": b"x"})
    with pytest.raises(ValueError, match=r"^repo someone/notes: is there already; write over"):
        publish([str(whole), "--repo", "someone/notes"])
    assert len(hub.repositories["someone/notes"].commits) == 1


def test_a_dry_run_changes_and_sends_nothing(hub, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    publish([str(whole), "--repo", "someone/tiny", "--dry_run"])
    said = capsys.readouterr().out
    assert "prior/model.safetensors" in said and "nothing has left" in said and "optimizer.bin" not in said
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before and hub.asked == []


def test_a_repository_that_is_there_is_written_over_only_when_told(hub, whole):
    publish([str(whole), "--repo", "someone/tiny", "--private"])
    assert hub.repositories["someone/tiny"].private
    with pytest.raises(
        ValueError, match=r"^repo someone/tiny: is there already; write over its model with --overwrite"
    ):
        publish([str(whole), "--repo", "someone/tiny"])
    hub.put("someone/tiny", {**list(hub.repositories["someone/tiny"].commits.values())[-1], "picture.png": b"kept"})
    (whole / "ATTRIBUTION.md").unlink()
    publish([str(whole), "--repo", "someone/tiny", "--overwrite", "--private"])
    files = list(hub.repositories["someone/tiny"].commits.values())[-1]
    assert "ATTRIBUTION.md" not in files and files["picture.png"] == b"kept" and "prior/model.safetensors" in files
    hub.put("someone/open", {"README.md": b"x"})
    with pytest.raises(ValueError, match=r"^repo someone/open: is there already and public"):
        publish([str(whole), "--repo", "someone/open", "--overwrite", "--private"])
    assert len(hub.repositories["someone/open"].commits) == 1


def test_what_the_hub_refuses_is_one_line(hub, whole, monkeypatch):
    def refused(repository, said):
        with pytest.raises(ValueError, match=f"^repo {repository}: nothing was published: {said}") as raised:
            publish([str(whole), "--repo", repository])
        assert "\n" not in str(raised.value)

    refused(
        "others/tiny",
        r"the Hub refuses others/tiny to this token: it may not write there.*\(You don't have the rights\)",
    )
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    refused("someone/tiny", r"the Hub does not take this token; log in with `hf auth login`, or set HF_TOKEN")
    hub.broken.add("busy")
    refused("someone/tiny", "the Hub answered 503 for someone/tiny")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOBODY)
    refused("someone/tiny", "the Hub cannot be reached for someone/tiny")
    assert hub.repositories == {}


def test_a_model_that_does_not_load_is_not_published(hub, whole):
    weights = whole / "dvae/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"dvae/model.safetensors is damaged"):
        publish([str(whole), "--repo", "someone/tiny"])
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        publish(["nowhere"])
    assert hub.asked == [] and not (whole / "README.md").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repo": "tiny"}, "repo tiny: must be owner/name"),
        ({"repo": "a/b@main"}, "repo a/b@main: must be owner/name"),
        ({"private": True}, "private: is of a repository"),
        ({"about": "two\nlines"}, "about: must be one line"),
        ({"licence": " "}, "licence: must be one line"),
    ],
)
def test_bad_settings(options, said):
    with pytest.raises(ValueError, match=said):
        Publish(folder="x", **options)


def test_places_are_taken_out_of_settings():
    settings = {
        "data": "/home/me/shards/a-{000..006}.tar pipe-not/b.tar",
        "list": ["/x/y/z", 3, None, True],
        "url": "https://me:pw@host.org/a/b.tar?token=1",
        "pipe": "pipe:aws s3 cp s3://bucket/x.tar - --profile secret",
        "home": "~/runs/mine/dvae",
        "root": "/data",
        "nested": {"output": "/home/me/runs/mine/"},
    }
    assert without_places(settings) == {
        "data": "shards/a-{000..006}.tar pipe-not/b.tar",
        "list": ["y/z", 3, None, True],
        "url": "https://host.org/a/b.tar",
        "pipe": "pipe:",
        "home": "mine/dvae",
        "root": "data",
        "nested": {"output": "runs/mine"},
    }
