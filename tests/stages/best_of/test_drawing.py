"""Candidates drawn, judged and kept: the best really are, the same by any number of processes and after a kill, and a
training on them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dalle.cli import arguments
from dalle.cli.train import train
from dalle.cluster.topology import World
from dalle.config import Sampling, TrainPrior
from dalle.data.shapes import Claim
from dalle.data.tokens import TokenShards
from dalle.models.folder import read_header
from dalle.sampling.loading import load
from dalle.sampling.pipeline import Pipeline
from dalle.sampling.ranking.viewer import embed_captions, score_codes
from dalle.stages.best_of import drawing, judging
from dalle.stages.best_of.drawing import draw_best
from dalle.stages.best_of.prompts import choose_captions, claims, first_seed
from dalle.stages.prior import stage
from tests.conftest import TINY_PRIOR
from tests.processes import ON_CPU, run_processes

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{told}")
    for told in ("the caption has", "the re.* reads only", "best_of.* were cut")
]
ALONE = World(0, 1, torch.device("cpu"))
CAPTIONS, CANDIDATES, PART = 22, 5, 6


@pytest.fixture(scope="module")
def folder(models, codes_clip, tmp_path_factory):
    """The models, with a reader of codes."""
    target = tmp_path_factory.mktemp("best-of") / "model"
    for name in ("prior", "dvae", "clip"):
        shutil.copytree(models / name, target / name)
    shutil.copytree(codes_clip, target / "codes-clip")
    return target


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(drawing, "_PART_CAPTIONS", PART)


def _options(models, folder, output, *more: str) -> list[str]:
    inputs = ["--data", f"{models}/tokens/train", "--dvae", f"{models}/dvae"]
    best_of = {
        "model": folder,
        "captions": CAPTIONS,
        "candidates": CANDIDATES,
        "sampling.chunk": 2 * CANDIDATES,
        "sampling.precision": "fp32",
        "sampling.compile": "false",
        "sampling.temperature": 1,
    }
    options = [word for name, value in best_of.items() for word in (f"--best_of.{name}", str(value))]
    tokenizer = ["--tokenizer", f"{models}/prior/tokenizer.json"]
    return [*TINY_PRIOR, *inputs, *tokenizer, "--output", str(output), "--run.steps", "3", *options, *more]


def _config(models, folder, output, *more: str) -> TrainPrior:
    return arguments.parse(TrainPrior, "test", _options(models, folder, output, *more))


def _files(output) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "best-of").glob("*") if path.is_file()}


def _kept(output) -> list[tuple[list[int], str]]:
    shards = TokenShards(output / "best-of")
    places = [(s, r) for s, size in enumerate(shards.meta.shard_sizes) for r in range(size)]
    return [(codes_I.tolist(), captions[0]) for codes_I, captions in (shards.pair(*place) for place in places)]


@pytest.fixture(scope="module")
def drawn(models, folder, tmp_path_factory):
    """Drawn by one process, without a break."""
    output = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_PART_CAPTIONS", PART)
        draw_best(_config(models, folder, output), ALONE)
    return output


def _candidates(pipeline, caption: str, number: int) -> np.ndarray:
    """Codes [N, I] of a caption, drawn by itself."""
    sampling = Sampling(chunk=CANDIDATES, precision="fp32", compile=False, temperature=1)
    seed = first_seed(0, number, CANDIDATES)
    (chunk,) = pipeline.candidates([caption], CANDIDATES, seed, sampling)
    return chunk.codes_CNI[0]


@torch.no_grad()
def _scores(pipeline, judge: str, caption: str, codes_NI: np.ndarray) -> list[float]:
    """One candidate at a time, by the models alone."""
    scores = []
    for codes_I in torch.from_numpy(codes_NI):
        if judge == "clip":
            image = (pipeline.dvae.decode(codes_I.view(1, 4, 4)).clamp(0, 1) * 255).round().to(torch.uint8)
            text_1E = pipeline.clip.embed_texts(pipeline.clip.tokens([caption]))
            scores.append(float(pipeline.clip.embed_images(image)[0] @ text_1E[0]))
        else:
            text_1E = embed_captions(pipeline.codes_clip, [caption], ALONE.device, "reader of codes")
            scores.append(float(score_codes(pipeline.codes_clip, codes_I[None], text_1E)[0]))
    return scores


def test_batches_have_the_rows_that_are_asked_for(models, folder, tmp_path, monkeypatch):
    """Several captions together, the last filled up; one in parts, where it has more candidates than rows."""
    widths, seeds, chunk = [], [], Pipeline.chunk

    def counted(self, reading, first, sampling, *rest):
        widths.append((len(reading.captions), sampling.chunk))
        seeds.append(first.tolist())
        return chunk(self, reading, first, sampling, *rest)

    monkeypatch.setattr(Pipeline, "chunk", counted)
    few = ["--best_of.captions", "3", "--best_of.seed", "6", "--best_of.sampling.chunk"]
    draw_best(_config(models, folder, tmp_path / "together", *few, "14"), ALONE)
    assert widths == [(2, CANDIDATES)] * 2
    firsts = [first_seed(6, number, CANDIDATES) for number in range(3)]
    assert seeds == [firsts[:2], [firsts[2]] * 2]
    widths.clear()
    draw_best(_config(models, folder, tmp_path / "parts", *few, "2"), ALONE)
    assert widths == [(1, 2)] * 9
    widths.clear()
    # what was begun goes on as it began, whatever is asked for now, so that all of it is as if drawn in one go
    (tmp_path / "together/best-of/meta.json").unlink()
    (tmp_path / "together/best-of/tokens-00000.safetensors").unlink()
    draw_best(_config(models, folder, tmp_path / "together", *few, "2"), ALONE)
    assert widths == [(2, CANDIDATES)] * 2


@pytest.mark.parametrize("judge", ["clip", "codes-clip"])
def test_the_best_of_all_candidates_is_kept(models, folder, drawn, tmp_path, judge):
    output = drawn
    if judge == "codes-clip":
        output = tmp_path
        draw_best(_config(models, folder, output, "--best_of.judge", judge), ALONE)
    pipeline = load(folder, precision="fp32", device="cpu", shortlist=True)
    captions = choose_captions(TokenShards(models / "tokens/train"), CAPTIONS, 0)
    kept = _kept(output)
    assert [caption for _, caption in kept] == captions
    found = []
    for number, (codes, caption) in enumerate(kept):
        codes_NI = _candidates(pipeline, caption, number)
        scores = _scores(pipeline, judge, caption, codes_NI)
        drew = [codes == other for other in codes_NI.tolist()]
        # 1e-5 is far above the last bits of a cosine, in which batches of another shape differ, and far below what candidates do
        found.append(any(drew) and scores[drew.index(True)] >= max(scores) - 1e-5)
    # two captions drawn together round differently from one, which now and then is another code
    assert sum(found) >= CAPTIONS - 2


def test_drawn_by_two_processes_it_is_the_same(models, folder, drawn, tmp_path):
    script = """
import sys
from dalle.cli import arguments
from dalle.cluster.topology import joined
from dalle.config import TrainPrior
from dalle.stages.best_of import drawing
drawing._PART_CAPTIONS = 6
drawn = []
write = drawing._write
drawing._write = lambda folder, number, *rest: (drawn.append(number), write(folder, number, *rest))
with joined() as world:
    drawing.draw_best(arguments.parse(TrainPrior, "test", sys.argv[1:]), world)
print(drawn)
"""
    told = run_processes(script, 2, 2, 600, _options(models, folder, tmp_path), ON_CPU)
    assert told.splitlines()[-1] == "[0, 2]", "each draws every second part"
    assert _files(tmp_path) == _files(drawn)


class _First:
    """The first of two processes, the other of which says the same but of how many rows it would draw together."""

    rank, size, is_main, device = 0, 2, True, ALONE.device

    def __init__(self, did: list[str]):
        self.did = did

    def gather(self, value):
        self.did.append("gather")
        return [value, value + 5 if type(value) is int else value]  # it could draw more together

    def barrier(self):
        self.did.append("barrier")


def test_who_is_done_waits_where_nobody_takes_it_for_one_that_hangs(models, folder, drawn, tmp_path, monkeypatch):
    """It moves on, in no collective, until all that the other draws is there."""
    monkeypatch.setattr(drawing.time, "sleep", lambda _: None)
    did: list[str] = []

    def mark(phase: str) -> None:
        did.append(phase)
        if waits := did.count("waiting for the others' candidates"):
            name = f"tokens-{min(waits, 3):05d}.safetensors"  # the part of its own between them stays as it is
            shutil.copy(drawn / "best-of" / name, tmp_path / "best-of" / name)

    draw_best(_config(models, folder, tmp_path), _First(did), mark)
    end = did.index("waiting for the others' candidates")
    assert did[end : end + 4] == 3 * ["waiting for the others' candidates"] + ["barrier"]
    assert did[end - 1] == "drawing candidates" and _files(tmp_path) == _files(drawn)


def test_killed_it_goes_on_with_what_is_drawn(models, folder, drawn, tmp_path, monkeypatch):
    config, write, numbers = _config(models, folder, tmp_path), drawing._write, []

    def die_at_the_third(folder, number, *rest):
        if len(numbers) == 2:
            (folder / ".tokens-00002.safetensors.0123abcd.partial").write_bytes(b"half of it")
            raise KeyboardInterrupt
        numbers.append(number)
        write(folder, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "_write", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            draw_best(config, ALONE)
    with pytest.raises(ValueError, match="no token shards"):
        TokenShards(tmp_path / "best-of")
    whole = tmp_path / "best-of/tokens-00001.safetensors"
    whole.write_bytes(whole.read_bytes()[:-100])  # a disk that was full
    numbers.clear()
    monkeypatch.setattr(drawing, "_write", lambda folder, n, *rest: (numbers.append(n), write(folder, n, *rest)))
    draw_best(config, ALONE)
    assert numbers == [1, 2, 3]
    assert _files(tmp_path) == _files(drawn)
    numbers.clear()
    draw_best(config, ALONE)
    assert not numbers
    with pytest.raises(ValueError, match=r"best_of.candidates was 5, is 4\): name another --output"):
        draw_best(_config(models, folder, tmp_path, "--best_of.candidates", "4"), ALONE)


def test_more_captions_change_nothing_of_the_first(models, folder, drawn, tmp_path):
    draw_best(_config(models, folder, tmp_path, "--best_of.captions", "9"), ALONE)
    assert _kept(tmp_path) == _kept(drawn)[:9]


def test_the_checker_lets_through_what_shows_the_caption(models, folder, shapes_folder, tmp_path, monkeypatch):
    """A stand-in for it, which is right about a few pictures, since a tiny prior draws none."""
    asked: list[Claim] = []
    accepted: list[tuple[Claim, np.ndarray]] = []

    def shows(image_YX3, claim):
        asked.append(claim)
        if is_right := int(image_YX3.astype(int).sum()) % 3 == 0:
            accepted.append((claim, image_YX3.astype(int)))
        return is_right

    more = ["--best_of.judge", "checker", "--best_of.scenes", f"{shapes_folder}/train-*.tar", "--best_of.keep", "2"]
    with pytest.raises(ValueError, match="of 110 candidates none was good enough"):
        draw_best(_config(models, folder, tmp_path / "none", *more), ALONE)
    monkeypatch.setattr(judging, "shows", shows)
    draw_best(_config(models, folder, tmp_path, *more), ALONE)
    told = json.loads((tmp_path / "best-of/best-of.json").read_text())
    captions = choose_captions(TokenShards(models / "tokens/train"), CAPTIONS, 0)
    claimed = dict(zip(captions, claims(f"{shapes_folder}/train-*.tar", captions), strict=True))
    assert set(asked) == set(claimed.values())
    pipeline = load(folder, rerank=False, precision="fp32", device="cpu")
    kept = _kept(tmp_path)
    assert len(kept) == told["kept"] == sum(told["shard_sizes"]) > 0 and told["score_kept"] == 1
    for codes, caption in kept:
        image_YX3 = (pipeline.decode(torch.tensor([codes]), "fp32")[0] * 255).permute(1, 2, 0).numpy()
        # decoded in another batch, a value may round to its neighbour
        far = [np.abs(image_YX3 - other).max() for claim, other in accepted if claim == claimed[caption]]
        assert min(far) <= 1
    assert told["captions_with_kept"] == len({caption for _, caption in kept}) < len(kept)
    assert told["kept_like_another"] == len(kept) - len({tuple(codes) for codes, _ in kept})
    files = sorted((tmp_path / "best-of").glob("tokens-*"))
    scores = np.concatenate([load_file(path)["scores_CN"] for path in files])
    assert scores.shape == (CAPTIONS, CANDIDATES) and told["score_all"] == pytest.approx(scores.mean())
    assert told["score_spread"] == pytest.approx(np.mean([np.std(each) for each in scores]))
    none = CAPTIONS - told["captions_with_kept"]
    assert told["lines"][0].endswith(f"of 22 captions, by checker; {none} captions have none")
    # 4.5 standard deviations of 110 candidates
    assert told["score_all"] == pytest.approx(1 / 3, abs=0.2)


def test_a_prior_trains_on_both_and_starts_from_the_one_that_drew(models, folder, drawn, tmp_path):
    output = tmp_path / "prior"
    shutil.copytree(drawn / "best-of", output / "best-of")
    (output / ".dalle-train-prior").write_text("{}")
    still = ["--optimizer.step_size.start", "0", "--optimizer.step_size.end", "0", "--run.ema_decay", "null"]
    assert train("prior", TrainPrior, _options(models, folder, output, *still))
    header = read_header(output)
    assert header["best_of_share"] == "0.5" and header["hash"] == read_header(folder / "prior")["hash"]
    assert header["caption_dropout"] == "0.1", "as the prior that it starts from"
    page = (output / "report.html").read_text()
    assert "Its own candidates" in page and "best-of/kept-and-dropped.png" in page
    assert "kept 22 of 110 candidates of 22 captions, by clip" in page
    assert (output / "best-of/kept-and-dropped.png").is_file()


def test_batches_are_of_both(models, folder, drawn, tmp_path):
    output = tmp_path / "prior"
    shutil.copytree(drawn / "best-of", output / "best-of")
    kept = {tuple(codes) for codes, _ in _kept(output)}
    for share, least, most in (("1", 1.0, 1.0), ("0.5", 0.5, 0.9)):
        told = stage(_config(models, folder, output, "--best_of.share", share), ALONE)
        batch = next(iter(told.loader))["codes_BI"].tolist()
        # a tiny prior's candidates are hardly ever what the dVAE makes of a picture
        assert least <= np.mean([tuple(codes) in kept for codes in batch]) <= most
        assert f"and {float(share):.0%} on 22 of its own candidates" in told.trained_on
        assert {path.rpartition("/")[0] for path in told.data} == {f"{models}/tokens/train", f"{output}/best-of"}


def test_a_run_that_is_resumed_needs_the_models_no_more(models, folder, drawn, tmp_path):
    shutil.copytree(drawn / "best-of", tmp_path / "best-of")
    config = _config(models, folder, tmp_path)
    config = replace(config, best_of=replace(config.best_of, model=str(tmp_path / "gone")))
    with pytest.raises(ValueError, match="gone: no such folder"):
        draw_best(config, ALONE)
    draw_best(replace(config, resume=True), ALONE)
    assert _files(tmp_path) == _files(drawn)


def test_models_of_other_tokens_are_refused(models, folder, tmp_path):
    config = _config(models, folder, tmp_path)
    shutil.copytree(models / "tokens/train", tmp_path / "tokens")
    meta = json.loads((tmp_path / "tokens/meta.json").read_text())
    (tmp_path / "tokens/meta.json").write_text(json.dumps({**meta, "dvae_hash": "0" * 64}))
    with pytest.raises(ValueError, match="are of another dVAE than"):
        draw_best(replace(config, data=str(tmp_path / "tokens")), ALONE)
    assert not (tmp_path / "best-of").exists()
