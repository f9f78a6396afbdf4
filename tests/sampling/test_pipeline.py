"""From a folder to ranked drawings: determinism in n, image prompts, drawings made again, refusals."""

import gc
import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import dalle
from dalle.config import Sampling
from dalle.models.folder import content_hash, load_prior, read_config, read_header, save_weights
from dalle.sampling.again import count_differing_pixels, differences, draw_again, read_record
from dalle.sampling.drawing import save_drawing
from dalle.sampling.pipeline import Pipeline
from dalle.sampling.prompt import encode_with

FAST = Sampling(chunk=4, precision="fp32")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipeline(models):
    return dalle.load(models, device="cpu")


def test_candidate_i_is_the_same_image_whatever_n_is(pipeline):
    few = {d.seed: d for d in pipeline.generate("a red circle", n=3, seed=10, sampling=FAST)}
    many = {d.seed: d for d in pipeline.generate("a red circle", n=9, seed=10, sampling=FAST)}
    assert sorted(few) == [10, 11, 12]
    assert sorted(many) == list(range(10, 19))
    for seed, drawing in few.items():
        assert np.array_equal(drawing.image, many[seed].image)
        assert drawing.score == many[seed].score


def test_ranked_best_first_and_cut(pipeline):
    every = pipeline.generate("a red circle", n=6, sampling=FAST)
    best = pipeline.generate("a red circle", n=6, keep=2, sampling=FAST)
    assert [d.score for d in every] == sorted((d.score for d in every), reverse=True)
    assert [d.seed for d in best] == [d.seed for d in every[:2]]
    assert [d.rank for d in best] == [1, 2]
    assert set(best[0].settings["models"]) == {"prior", "dvae", "tokenizer", "clip"}


def test_without_a_reranker_the_order_is_that_of_the_seeds(models):
    drawings = dalle.load(models, rerank=False).generate("a red circle", n=5, keep=3, sampling=FAST)
    assert [d.seed for d in drawings] == [0, 1, 2]
    assert [d.score for d in drawings] == [None] * 3


def test_images_and_scores_do_not_depend_on_how_many_are_looked_at_together(pipeline, monkeypatch):
    whole = pipeline.generate("a red circle", n=4, sampling=FAST)
    monkeypatch.setattr("dalle.sampling.pipeline._PIXELS_TOGETHER", 3 * 32**2)  # two batches, the second filled up
    parts = pipeline.generate("a red circle", n=4, sampling=FAST)
    assert [d.seed for d in parts] == [d.seed for d in whole]
    for one, other in zip(whole, parts, strict=True):
        # unit vectors, of pixels of which some may be one level off
        assert one.score == pytest.approx(other.score, abs=1e-2)
        # sums of a few hundred fp32 terms in another order may cross the border between two of 256 levels
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1


def test_image_prompt_keeps_its_rows(pipeline):
    codes = encode_with(pipeline.dvae, np.asarray(PICTURE))
    drawings = pipeline.generate("a red circle", n=2, sampling=FAST, prompt_image=PICTURE, rows=3)
    assert all((d.codes_I[:12] == codes[:12]).all() for d in drawings)
    assert len({tuple(d.codes_I[12:]) for d in drawings}) == 2


def test_only_a_region_is_drawn(pipeline):
    codes = encode_with(pipeline.dvae, np.asarray(PICTURE)).reshape(4, 4)
    drawings = pipeline.generate("a red circle", n=4, sampling=FAST, prompt_image=PICTURE, region=(8, 8, 24, 16))
    drawn = np.stack([d.codes_I.reshape(4, 4) for d in drawings])
    inside = np.zeros((4, 4), bool)
    inside[1, 1:3] = True
    assert (drawn[:, ~inside] == codes[~inside]).all()
    assert len({tuple(d[inside]) for d in drawn}) > 1


def test_variations_have_the_drawings_own_codes_and_caption(pipeline, tmp_path):
    (origin,) = pipeline.generate("a blue cross", n=1, seed=5, sampling=FAST)
    save_drawing(origin, tmp_path / "origin.png")
    drawings = pipeline.generate(n=3, sampling=FAST, variations_of=tmp_path / "origin.png", rows=2)
    assert {d.caption for d in drawings} == {"a blue cross"}
    assert all((d.codes_I[:8] == origin.codes_I[:8]).all() for d in drawings)
    (other,) = pipeline.generate("a red circle", n=1, sampling=FAST, variations_of=tmp_path / "origin.png", rows=1)
    assert other.caption == "a red circle"
    # the same seed draws the same rest
    (same,) = pipeline.generate(n=1, seed=5, sampling=FAST, variations_of=tmp_path / "origin.png", rows=2)
    assert np.array_equal(same.codes_I, origin.codes_I)


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        (Sampling(chunk=4, precision="bf16", temperature=0.8, top_k=5), {}),
        (Sampling(chunk=3, precision="fp32", top_p=0.9, guidance=2.0), {}),
        (FAST, {"prompt_image": PICTURE, "region": (8, 8, 24, 16)}),
    ],
)
def test_a_drawing_is_made_again_from_its_file(pipeline, tmp_path, sampling, options):
    drawings = pipeline.generate("a red circle", n=7, seed=3, sampling=sampling, **options)
    drawing = next(d for d in drawings if d.seed == 8)  # not at the first place of a chunk
    assert drawing.settings["place"] == 5 % sampling.chunk
    save_drawing(drawing, tmp_path / "one.png")
    found = read_record(tmp_path / "one.png", pipeline.hashes)
    again = draw_again(pipeline, found)
    assert count_differing_pixels(found, again) == 0
    assert np.array_equal(again.codes_I, drawing.codes_I)
    assert (again.seed, again.score, again.rank) == (8, drawing.score, drawing.rank)
    changed = np.asarray(drawing.image).copy()
    changed[0, 0] ^= 1
    assert count_differing_pixels(found, replace(drawing, image=Image.fromarray(changed))) == 1


def test_a_drawing_of_four_captions_together_is_made_again(pipeline, tmp_path):
    (chunk,) = pipeline.candidates(["a red circle", "a blue cross", "two of them", "a square"], 3, 20, FAST)
    for caption in range(4):
        save_drawing(chunk.drawing(caption, 2), tmp_path / f"{caption}.png")
        found = read_record(tmp_path / f"{caption}.png", pipeline.hashes)
        assert count_differing_pixels(found, draw_again(pipeline, found)) == 0


def test_drawings_that_cannot_be_made_again(pipeline, tmp_path):
    (drawing,) = pipeline.generate("a red circle", n=1, sampling=FAST)

    def record(**changes):
        settings = {name: value for name, value in {**drawing.settings, **changes}.items() if value is not None}
        save_drawing(replace(drawing, settings=settings), tmp_path / "one.png")
        return read_record(tmp_path / "one.png", pipeline.hashes)

    with pytest.raises(ValueError, match=f"another dvae: expected aaaa…, found {pipeline.hashes['dvae'][:16]}"):
        record(models={**pipeline.hashes, "dvae": "aaaa"})
    with pytest.raises(ValueError, match="does not say its place, torch"):
        record(place=None, torch=None)
    for damage in ({"place": 4}, {"captions_together": "x"}, {"chunk": "wide"}, {"given": {"codes": "?"}}):
        with pytest.raises(ValueError, match="metadata are damaged"):
            draw_again(pipeline, record(**damage))
    assert differences(drawing.settings, "cpu", 16) == []
    assert differences({**drawing.settings, "torch": "1.0"}, "cpu", 16) == [f"torch was 1.0, is {torch.__version__}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n 0"),
        ({"keep": 0}, "keep 0"),
        ({"caption": "  "}, "empty"),
        ({"caption": None}, "empty"),
        ({"rows": 4, "prompt_image": PICTURE}, "rows 4"),
        ({"rows": 2}, "image prompt"),
        ({"prompt_image": PICTURE}, "image prompt"),
        ({"region": (0, 0, 8, 8)}, "image prompt"),
        ({"sampling": Sampling(top_k=17)}, "top_k 17: .* 16 codes"),
    ],
)
def test_refusals(pipeline, options, message):
    options = {"caption": "a red circle", "sampling": FAST, **options}
    with pytest.raises(ValueError, match=message):
        pipeline.generate(**options)


def test_scores_that_are_not_finite_are_refused(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.clip, "embed_texts", lambda tokens: torch.full((1, 16), torch.nan))
    with pytest.raises(ValueError, match=r"not finite.*seed 0"):
        pipeline.generate("a red circle", n=1, sampling=FAST)


def test_long_captions_are_cut_with_a_warning_that_shows_what_was_lost(pipeline):
    with pytest.warns(UserWarning, match="cut off: .*zebra"):
        tokens = pipeline.tokens(["1 2 3 4 5 6 7 8 9 1 2 3 4 zebra"])
    assert tokens.shape == (1, 23)


def test_models_that_do_not_belong_together_are_refused_with_both_hashes(models, tmp_path):
    from safetensors.torch import load_file

    from dalle.models.dvae import DVAE

    config = read_config(models / "dvae", "dvae")
    own = read_header(models / "dvae")["hash"]
    other = save_weights(tmp_path / "dvae", "dvae", DVAE(config).state_dict(), config, {})
    with pytest.raises(ValueError, match=f"another dVAE.*{own[:16]}.*{other[:16]}"):
        dalle.load(models, dvae=tmp_path / "dvae")
    with pytest.raises(ValueError, match="holds a dvae, not a prior"):
        dalle.load(models, prior=models / "dvae", dvae=models / "dvae")
    with pytest.raises(ValueError, match="no trained model"):
        dalle.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds a dvae, not a clip"):
        dalle.load(models, clip=models / "dvae")
    with pytest.raises(ValueError, match="no such reranker: 'ViT-B-32'"):
        dalle.load(models, clip="ViT-B-32")
    weights, header = load_file(models / "clip/model.safetensors"), read_header(models / "clip")
    assert content_hash(weights) == header["hash"]
    sizes = read_config(models / "clip", "clip")
    for link, said in (("dvae_hash", "dVAE"), ("tokenizer_hash", "tokenizer")):
        links = {name: header[name] for name in ("dvae_hash", "tokenizer_hash")}
        save_weights(tmp_path / "clip", "clip", weights, sizes, {**links, link: 16 * "ab"})
        with pytest.raises(
            ValueError, match=f"trained for another {said}: expected abababababababab…, found {links[link][:16]}"
        ):
            dalle.load(models, clip=tmp_path / "clip")


def test_the_prior_is_held_for_one_precision_at_a_time(models):
    """In 16 bits at first, which is what is drawn in; asked for another it is read again, and draws what it always drew."""
    loaded = dalle.load(models, rerank=False, device="cpu")
    kept = Pipeline(load_prior(models / "prior"), loaded.dvae, loaded.tokenizer)  # fp32 for all
    priors = []
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        sampling = Sampling(chunk=4, precision=precision)
        found, expected = (p.generate("a red circle", n=4, sampling=sampling) for p in (loaded, kept))
        assert all(np.array_equal(a.codes_I, b.codes_I) for a, b in zip(found, expected, strict=True))
        assert loaded.prior.text_head.weight.dtype == dtype
        (loop,) = loaded._loops.values()
        assert loop._model.layers[0].qkv.weight.dtype == dtype
        priors.append(weakref.ref(loaded.prior))
    gc.collect()
    assert [prior() for prior in priors] == [None, None, loaded.prior]
    assert all(parameter.dtype == torch.float32 for parameter in kept.prior.parameters())
    assert dalle.load(models, rerank=False, precision="fp32").prior.text_head.weight.dtype == torch.float32


def test_settings_can_be_written_as_json(pipeline):
    (drawing,) = pipeline.generate("a red circle", n=1, sampling=FAST, prompt_image=PICTURE, rows=1)
    settings = json.loads(json.dumps(drawing.settings))
    assert settings == drawing.settings
    assert {"chunk", "guidance", "precision", "captions_together", "device", "torch", "threads"} <= set(settings)
