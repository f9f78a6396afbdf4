"""A GAN draws through the same stream of candidates as the transformer: seeds, chunks, ranking, records."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import dalle
from dalle.cli import caption as caption_command
from dalle.config import Sampling, StackGANModel
from dalle.models.folder import load_generator, save_weights
from dalle.models.stackgan.generators import generator
from dalle.models.stackgan.noise import noise
from dalle.models.text_encoders import open_text_encoder
from dalle.sampling.again import count_differing_pixels, draw_again, read_record
from dalle.sampling.drawing import save_drawing
from dalle.sampling.loading import find

FAST = Sampling(precision="fp32", chunk=4)
FIRST = StackGANModel(
    text_width=16, image_size_px=8, channels=4, noise_width=5, condition_width=6, conditioning="linear"
)
SECOND = replace(FIRST, stage=2, image_size_px=32, resblocks=1)


def _save(folder, config, seed, **links):
    torch.manual_seed(seed)
    model = generator(config).train()
    with torch.no_grad():
        model.output.weight.mul_(50)  # at its init all images are nearly grey, whatever the caption
        model.conditioning.fc.weight.mul_(50)
        for _ in range(20):  # so that batch normalisation has means of its own
            made = {n: v for n, v in noise(config, range(16)).items()}
            low = None if config.stage == 1 else torch.rand(16, 3, config.low_px, config.low_px) * 2 - 1
            model(torch.randn(16, config.text_width), made["noise_BZ"], made["epsilon_BC"], low)
    return save_weights(folder, "stackgan", model.state_dict(), config, links)


@pytest.fixture(scope="module")
def encoder(models):
    return open_text_encoder(f"clip:{models / 'clip'}")


@pytest.fixture(scope="module")
def folder(models, encoder, tmp_path_factory):
    """A stage II with its stage I, and a reranker."""
    folder = tmp_path_factory.mktemp("gan")
    links = {"text_encoder": encoder.name, "text_encoder_hash": encoder.hash}
    first = _save(folder / "stage_one", FIRST, 0, **links)
    _save(folder, SECOND, 1, **links, stage_one_hash=first)
    shutil.copytree(models / "clip", folder / "clip")
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return dalle.load(folder, device="cpu")


def test_the_generators_draw_with_noise_of_the_seed_and_the_condition_of_the_caption(folder, encoder):
    pipeline = dalle.load(folder, rerank=False, device="cpu")
    drawing = pipeline.generate("a red circle", n=3, seed=40, sampling=FAST)[2]
    first, second = load_generator(folder / "stage_one"), load_generator(folder)
    text_BE = encoder.encode(["a red circle"])
    with torch.no_grad():
        z, epsilon = torch.from_numpy(np.random.default_rng([1, 42]).standard_normal(11, np.float32))[None].split(
            [5, 6], 1
        )
        low_BCYX = first(text_BE, z, epsilon)[0]
        epsilon = torch.from_numpy(np.random.default_rng([2, 42]).standard_normal(11, np.float32))[None, 5:]
        image = second(text_BE, None, epsilon, low_BCYX)[0][0]
    expected = ((image + 1) / 2 * 255).round().permute(1, 2, 0).numpy()
    # the last bits of a product depend on its batch, and one of them may lie at a rounding's edge
    assert np.abs(np.asarray(drawing.image, np.float32) - expected).max() <= 1
    assert (drawing.seed, drawing.score, drawing.codes_I) == (42, None, None)
    assert np.asarray(drawing.image).std() > 5  # something to compare


def test_a_candidate_is_the_same_whatever_n_is_and_others_differ(pipeline):
    few, many = (pipeline.generate("a red circle", n=n, seed=9, sampling=FAST) for n in (2, 7))
    by_seed = {drawing.seed: drawing for drawing in many}
    assert len(by_seed) == 7 and len({drawing.fingerprint() for drawing in many}) == 7
    for drawing in few:
        assert count_differing_pixels(drawing, by_seed[drawing.seed]) == 0
    other = pipeline.generate("a blue cross", n=1, seed=9, sampling=FAST)[0]
    assert count_differing_pixels(other, by_seed[9]) > 0
    far = pipeline.generate("a red circle", n=1, seed=9 + 2**32, sampling=FAST)[0]
    assert count_differing_pixels(far, by_seed[9]) > 0


def test_they_are_ranked_by_the_reranker(pipeline):
    drawings = pipeline.generate("a red circle", n=6, keep=4, sampling=FAST)
    assert [drawing.rank for drawing in drawings] == [1, 2, 3, 4]
    clip = pipeline.clip
    text = clip.embed_texts(clip.tokens(["a red circle"]))
    for drawing in drawings:
        pixels = torch.from_numpy(np.asarray(drawing.image).copy()).permute(2, 0, 1)[None]
        # fp32 products of another batch
        assert drawing.score == pytest.approx(float((clip.embed_images(pixels) * text).sum()), abs=1e-5)
    assert [d.score for d in drawings] == sorted((d.score for d in drawings), reverse=True)


def test_several_captions_together_are_as_each_alone(pipeline):
    captions = ["a red circle", "a blue cross"]
    together = pipeline.generate(captions, n=2, sampling=FAST)
    for caption, drawings in zip(captions, together, strict=True):
        alone = pipeline.generate(caption, n=2, sampling=FAST)
        assert [(d.caption, d.seed) for d in drawings] == [(d.caption, d.seed) for d in alone]
        assert all(count_differing_pixels(a, b) == 0 for a, b in zip(drawings, alone, strict=True))


def test_a_drawing_is_made_again_from_its_file(pipeline, folder, tmp_path):
    drawing = pipeline.generate("a red circle", n=6, seed=3, sampling=FAST)[2]
    save_drawing(drawing, tmp_path / "one.png")
    models = find(folder, rerank=False)
    again = draw_again(dalle.load(folder, rerank=False, device="cpu"), read_record(tmp_path / "one.png", models.hashes))
    assert count_differing_pixels(again, drawing) == 0
    with pytest.raises(ValueError, match=r"another stage_two: expected .*, found aaaa"):
        read_record(tmp_path / "one.png", {**models.hashes, "stage_two": "aaaa"})
    given = replace(drawing, settings={**drawing.settings, "given": {"codes": "", "keep": ""}})
    save_drawing(given, tmp_path / "two.png")
    with pytest.raises(ValueError, match="metadata are damaged"):
        draw_again(pipeline, read_record(tmp_path / "two.png", models.hashes))


def test_stage_one_draws_alone(folder):
    drawing = dalle.load(folder / "stage_one", device="cpu").generate("a red circle", n=1, sampling=FAST)[0]
    assert drawing.image.size == (8, 8) and set(drawing.settings["models"]) == {"stage_one", "text_encoder"}


def test_no_guidance_may_be_said(pipeline):
    one, same = (pipeline.generate("a red circle", n=1, sampling=FAST, **more)[0] for more in ({}, {"guidance": 1.0}))
    assert np.array_equal(one.image, same.image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n 0"),
        ({"keep": 0}, "keep 0"),
        ({"caption": " "}, "empty"),
        ({"temperature": 0.5}, r"sampling.temperature 0.5: .* a GAN, which has none; leave it out"),
        ({"guidance": 2.0}, r"sampling.guidance 2.0"),
        ({"top_p": 0.9}, r"sampling.top_p 0.9"),
    ],
)
def test_refusals(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate(**{"caption": "a red circle", "sampling": FAST, **options})


def test_what_does_not_belong_together_is_refused(folder, models, tmp_path):
    with pytest.raises(ValueError, match=r"shortlist, codes_clip: read codes, .* leave them out"):
        dalle.load(folder, shortlist=True)
    with pytest.raises(ValueError, match=r"text_encoder clip:x: is a GAN's, .* is none"):
        dalle.load(models, text_encoder="clip:x")
    header = {"text_encoder": f"clip:{models / 'clip'}", "text_encoder_hash": "b" * 64}
    _save(tmp_path / "other", FIRST, 0, **header)
    with pytest.raises(ValueError, match=r"text_encoder clip:.*: the model was trained with another: expected bbbb"):
        dalle.load(tmp_path / "other")
    _save(tmp_path / "alone", SECOND, 0, **header, stage_one_hash="c" * 64)
    with pytest.raises(ValueError, match=r"is a stage II, which begins with stage I's images .*stage_one holds no"):
        find(tmp_path / "alone")
    _save(tmp_path / "alone/stage_one", FIRST, 0, **header)
    with pytest.raises(ValueError, match=r"was trained with another stage I: expected cccc"):
        find(tmp_path / "alone")


def test_scores_that_are_not_finite_are_refused(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.clip, "embed_texts", lambda tokens: torch.full((1, 16), torch.nan))
    with pytest.raises(ValueError, match=r"reranker gives scores that are not finite.*seed 0"):
        pipeline.generate("a red circle", n=1, sampling=FAST)


def test_the_command_draws_ranks_and_draws_again(folder, tmp_path, capsys):
    from dalle.cli.sample import sample

    output = tmp_path / "out"
    sample(
        [
            "a red circle",
            "--model",
            str(folder),
            "--output",
            str(output),
            "--n",
            "6",
            "--keep",
            "2",
            "--sampling.chunk",
            "4",
        ]
    )
    images = sorted((output / "images").glob("*.png"))
    assert len(images) == 2 and Image.open(images[0]).size == (32, 32)
    sample(["--again", str(images[0]), "--model", str(folder), "--output", str(tmp_path / "again")])
    assert "all pixels are those of" in capsys.readouterr().out
    with pytest.raises(ValueError, match="an image prompt is made of codes"):
        sample(
            [
                "a red circle",
                "--model",
                str(folder),
                "--output",
                str(tmp_path / "prompt"),
                "--prompt_image",
                str(images[0]),
                "--rows",
                "1",
            ]
        )


def test_it_is_evaluated_as_every_model_is(folder, shapes_folder, tmp_path):
    from dalle.cli.evaluation.evaluate import evaluate

    reference = ["--reference", f"{shapes_folder}/valid-000.tar", "--most", "4", "--blur_radii", "[0]"]
    evaluate(["--model", str(folder), *reference, "--n", "2", "--keep", "1", "--output", str(tmp_path / "out")])
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert set(manifest["identities"]["models"]) == {"stage_one", "stage_two", "text_encoder", "clip"}
    assert {"distances_efficientnet-lite0", "judged", "ranking"} <= set(manifest["figures"])
    assert not {"stage_one", "stage_two"} & set(manifest["figures"])


def test_captions_for_an_image_are_not_asked_of_a_gan(folder, tmp_path):
    """It ended in a traceback: a GAN has no codes that captions could be scored by."""
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    (tmp_path / "captions.txt").write_text("a red circle\n")
    asked = ["--model", str(folder), "--captions", str(tmp_path / "captions.txt"), str(tmp_path / "picture.png")]
    with pytest.raises(ValueError, match=f"model {folder}: is a GAN, which has no codes"):
        caption_command.caption(asked)
