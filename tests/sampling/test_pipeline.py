"""From a folder to ranked drawings: determinism in n, image prompts, drawings made again, refusals."""

import gc
import io
import json
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import dalle
from dalle.config import Sampling
from dalle.models.folder import content_hash, load_prior, read_config, read_header, save_weights
from dalle.models.likelihood import to_pixels, to_uint8
from dalle.sampling.again import count_differing_pixels, differences, draw_again, read_record
from dalle.sampling.drawing import png_of, save_drawing
from dalle.sampling.pipeline import Pipeline
from dalle.sampling.prompt import Prompt, encode_with

pytestmark = pytest.mark.usefixtures("two_threads")  # C++ and products share work among them

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
    # two batches, the second filled up
    monkeypatch.setattr("dalle.sampling.ranking.viewer._PIXELS_TOGETHER", 3 * 32**2)
    parts = pipeline.generate("a red circle", n=4, sampling=FAST)
    assert [d.seed for d in parts] == [d.seed for d in whole]
    for one, other in zip(whole, parts, strict=True):
        # unit vectors, of pixels of which some may be one level off
        assert one.score == pytest.approx(other.score, abs=1e-2)
        # sums of a few hundred fp32 terms in another order may cross the border between two of 256 levels
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1


def test_pixels_are_rounded_and_not_cut(pipeline):
    """To the nearest level, wherever the dVAE's pixels become an image."""
    levels = torch.tensor([0, 0.4, 0.6, 99.4, 99.6, 254.4, 254.6, 255])
    assert to_uint8(levels / 255).tolist() == to_pixels(levels.reshape(1, 1, 1, -1) / 255).flatten().tolist()
    assert to_uint8(levels / 255).tolist() == [0, 0, 1, 99, 100, 254, 255, 255]
    (drawing,) = pipeline.generate("a red circle", n=1, sampling=FAST)
    pixels_YX3 = np.array(PICTURE)
    shown = [
        (drawing.codes_I, np.asarray(drawing.image)),
        (encode_with(pipeline.dvae, pixels_YX3), pipeline.reconstruct(pixels_YX3[None], "fp32")[0]),
    ]
    for codes_I, image_YX3 in shown:
        exact_3YX = 255 * pipeline.dvae.decode(torch.from_numpy(codes_I).reshape(1, 4, 4))[0]
        # half a level, and what other sums of a few hundred fp32 terms round otherwise
        assert np.abs(image_YX3 - exact_3YX.permute(1, 2, 0).numpy()).max() < 0.51


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_candidate_is_scored_by_its_own_caption_in_fp32(pipeline, precision):
    """Against the reranker asked for one picture and one caption at a time; also where the sampling is not in fp32."""
    captions = ["a red circle", "a blue cross", "two of them"]
    chunks = pipeline.candidates(captions, 5, 3, Sampling(chunk=4, precision=precision))
    for chunk in chunks:
        for row, caption in enumerate(captions):
            for place, image_YX3 in enumerate(chunk.images_CNYX3[row]):
                expected = [_score(pipeline.clip, image_YX3, text) for text in captions]
                # unit vectors of 16 numbers, of products of another shape; in bf16 they are 1e-3 off
                assert chunk.scores_CN[row, place] == pytest.approx(expected[row], abs=2e-6)
                assert all(abs(score - expected[row]) > 1e-3 for score in expected if score != expected[row])
            drawing = chunk.drawing(row, 0)
            assert (drawing.caption, drawing.score) == (caption, pytest.approx(chunk.scores_CN[row, 0]))


@torch.inference_mode()
def _score(clip, image_YX3, caption):
    image_BCYX = torch.from_numpy(image_YX3.copy()).permute(2, 0, 1)[None]
    return float((clip.embed_images(image_BCYX) * clip.embed_texts(clip.tokens([caption]))).sum())


def test_what_is_encoded_is_encoded_in_fp32(pipeline, monkeypatch):
    """Prompts, and what is reconstructed, whatever the sampling precision or a caller's autocast."""
    seen = []
    encode = pipeline.dvae.encode

    def recorded(images_BCYX):
        seen.append(torch.is_autocast_enabled("cpu"))
        return encode(images_BCYX)

    monkeypatch.setattr(pipeline.dvae, "encode", recorded)
    with torch.autocast("cpu", torch.bfloat16):
        pipeline.prompt(PICTURE, rows=1)
        back_BYX3 = pipeline.reconstruct(np.asarray(PICTURE)[None], "bf16")
    assert back_BYX3.shape == (1, 32, 32, 3)
    assert seen == [False, False]


def test_equal_candidates_are_one_drawing_and_the_next_best_fills_up(pipeline):
    """Of images in which one code alone is drawn there are 16 at most."""
    options = {"n": 40, "seed": 3, "sampling": FAST, "prompt_image": PICTURE, "region": (24, 24, 32, 32)}
    prompt = pipeline.prompt(PICTURE, region=options["region"])
    chunks = list(pipeline.candidates(["a red circle"], 40, 3, FAST, prompt))
    codes, scores = (np.concatenate([getattr(c, name)[0] for c in chunks]) for name in ("codes_CNI", "scores_CN"))
    drawings = pipeline.generate("a red circle", **options)
    assert len(drawings) == len(np.unique(codes[:, 15])) < 17
    assert sum(d.times for d in drawings) == 40
    assert [d.score for d in drawings] == sorted((d.score for d in drawings), reverse=True)
    for drawing in drawings:
        equal = np.flatnonzero(codes[:, 15] == drawing.codes_I[15])
        assert (drawing.times, drawing.seed) == (len(equal), 3 + equal[0])
        assert drawing.score == scores[equal].max() == scores[equal].min()
    best = pipeline.generate("a red circle", keep=4, **options)
    assert [(d.seed, d.times, d.rank) for d in best] == [(d.seed, d.times, d.rank) for d in drawings[:4]]
    # the very same whatever n is, but for how often they came
    few = pipeline.generate("a red circle", **{**options, "n": 7})
    by_seed = {d.seed: d for d in drawings}
    assert all(np.array_equal(d.image, by_seed[d.seed].image) and d.times <= by_seed[d.seed].times for d in few)


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


@pytest.mark.parametrize("pixels_kept", [True, False])  # an earlier version did not keep a hash of them
def test_what_was_painted_into_a_drawing_is_seen(pipeline, tmp_path, pixels_kept):
    """An editor keeps the text of a PNG, and so the codes of what was there before."""
    (origin,) = pipeline.generate("a blue cross", n=1, seed=5, sampling=FAST)
    with Image.open(io.BytesIO(png_of(origin))) as file:
        text = PngInfo()
        text.add_itxt("caption", file.text["caption"])
        known = json.loads(file.text["dalle"])
        text.add_itxt("dalle", json.dumps(known if pixels_kept else {**known, "pixels": None}))
    PICTURE.save(tmp_path / "painted.png", pnginfo=text)
    PICTURE.resize((40, 40)).save(tmp_path / "resized.png", pnginfo=text)
    options = dict(n=1, sampling=FAST, rows=2)
    for path, told in (("painted", "painted.png: its pixels are not those that were drawn"), ("resized", "40×40 px")):
        if path == "painted" and not pixels_kept:
            continue  # nothing says so
        with Image.open(tmp_path / f"{path}.png") as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (expected,) = pipeline.generate("a blue cross", prompt_image=image.convert("RGB"), **options)
        with pytest.warns(UserWarning) as said:
            (drawing,) = pipeline.generate(variations_of=tmp_path / f"{path}.png", **options)
        assert any(told in str(warning.message) for warning in said)
        assert np.array_equal(drawing.codes_I, expected.codes_I)
        assert not np.array_equal(drawing.codes_I[:8], origin.codes_I[:8])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full(16, 16), "code 16, where this prior has codes 0 to 15"),
        (np.arange(16) - 1, "code 4294967295, where"),  # as the file holds −1
        (np.arange(15), "15 codes, where an image of this prior has 16"),
        (np.arange(17) % 16, "17 codes, where"),
        (np.arange(0), "0 codes, where"),
    ],
)
def test_codes_of_a_file_are_checked(pipeline, tmp_path, codes, message):
    (origin,) = pipeline.generate("a blue cross", n=1, seed=5, sampling=FAST)
    path = tmp_path / "origin.png"
    save_drawing(replace(origin, codes_I=codes), path)
    with pytest.raises(ValueError, match=f"origin.png: its metadata are damaged: {message}"):
        pipeline.generate(n=1, sampling=FAST, variations_of=path, rows=2)
    # of another dVAE they say nothing here, whatever they are: the image is encoded
    models = {**origin.settings["models"], "dvae": "another"}
    save_drawing(replace(origin, codes_I=codes, settings={**origin.settings, "models": models}), path)
    assert len(pipeline.generate(n=1, sampling=FAST, variations_of=path, rows=2)) == 1


@pytest.mark.parametrize(
    ("codes", "kept", "message"),
    [
        (np.full(16, 16), np.arange(16) < 4, "code 16, where"),
        (np.arange(16) - 1, np.arange(16) < 4, "code -1, where"),
        (np.arange(4), np.arange(4) < 2, "4 codes, where"),
        (np.arange(16), np.arange(4) < 2, "16 codes are given, and of 4"),
        (np.arange(16) / 16, np.arange(16) < 4, "codes of type float64"),
    ],
)
def test_given_codes_are_checked(pipeline, codes, kept, message):
    with pytest.raises(ValueError, match=message):
        list(pipeline.candidates(["a red circle"], 1, 0, FAST, Prompt(codes, kept)))
    # those that are not kept mean nothing
    assert list(pipeline.candidates(["a red circle"], 1, 0, FAST, Prompt(np.full(16, 99), np.arange(16) < 0)))


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
    assert draw_again(pipeline, replace(found, times=3)).times == 3
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
    assert differences(drawing.settings, "cpu", drawing.settings["kernels"]) == []
    assert differences({**drawing.settings, "torch": "1.0"}, "cpu", drawing.settings["kernels"]) == [
        f"torch was 1.0, is {torch.__version__}"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n 0"),
        ({"keep": 0}, "keep 0"),
        ({"caption": "  "}, "empty"),
        ({"caption": None}, "empty"),
        ({"rows": 4, "prompt_image": PICTURE}, "rows 4"),
        ({"rows": 2}, "image prompt"),
        ({"prompt_image": PICTURE}, "rows and region: give one of them"),
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
    with pytest.raises(ValueError, match=r"not finite.*seed 0.*it is broken"):
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
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        dalle.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no trained model"):
        dalle.load(tmp_path)
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
        sampling = Sampling(temperature=1.0, chunk=4, precision=precision)
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


def test_python_takes_what_python_gives(pipeline):
    """A list of captions, single settings by their names, and a call of the pipeline itself."""
    captions = ["a red circle", "a blue cross"]
    several = pipeline(captions, n=4, keep=2, chunk=4, precision="fp32", temperature=0.7)
    for caption, drawings in zip(captions, several, strict=True):
        alone = pipeline.generate(caption, 4, 2, sampling=Sampling(temperature=0.7, chunk=4, precision="fp32"))
        assert [(d.seed, d.caption) for d in drawings] == [(d.seed, caption) for d in alone]
        assert all(np.array_equal(a.codes_I, b.codes_I) for a, b in zip(drawings, alone, strict=True))
        assert drawings[0].settings["temperature"] == 0.7
    with pytest.raises(TypeError, match="heat"):
        pipeline("a red circle", heat=0.7)
    with pytest.raises(ValueError, match="temperature"):
        pipeline("a red circle", temperature=-1.0)
    assert pipeline([], n=4) == []


def test_a_notebook_shows_a_drawing(pipeline):
    (drawing,) = pipeline("a red circle", n=1, sampling=FAST)
    with Image.open(io.BytesIO(drawing._repr_png_())) as shown:
        assert shown.size == (256, 256)  # of 32
        assert np.array_equal(np.asarray(shown)[::8, ::8], np.asarray(drawing.image))
