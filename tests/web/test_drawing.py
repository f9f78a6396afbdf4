"""What is drawn for those who ask: the same pictures as everywhere else, in turns, and only as long as somebody waits."""

import base64
import gc
import io
import json
import queue
import shlex
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import dalle
from dalle.cli.arguments import parse
from dalle.config import Sample, Sampling, Serve
from dalle.data.shapes import draw, sample_scene
from dalle.sampling.again import count_differing_pixels, draw_again
from dalle.sampling.drawing import drawing_of
from dalle.sampling.prompt import encode_with
from dalle.web import serving
from dalle.web.job import Job
from dalle.web.shelf import code_colours
from dalle.web.telling import bundle
from tests.web.running import gated, running, slowed, wait_for

CAPTION = "a red circle above a blue square"


def _drawn(answer):
    """The drawings of an answer's files."""
    return [drawing_of(base64.b64decode(told["png"]), told["file"]) for told in answer["drawings"]]


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def picture():
    """Wider than high, so that it is cropped."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def test_the_pictures_are_those_of_the_pipeline(server, shelved):
    answer = server.draw(CAPTION, n=7, seed=5, top_p=0.9)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    told = answer.json()
    sampling = Sampling(chunk=4, precision="fp32", top_p=0.9)
    wanted = shelved.pipeline.generate(CAPTION, n=7, seed=5, sampling=sampling)
    drawn = _drawn(told)
    assert [(d.seed, d.rank, d.score, d.times) for d in drawn] == [(d.seed, d.rank, d.score, d.times) for d in wanted]
    assert all(count_differing_pixels(one, other) == 0 for one, other in zip(drawn, wanted, strict=True))
    assert [d.settings for d in drawn] == [d.settings for d in wanted]
    assert (told["drawn"], told["stopped"], told["caption"], told["model"]) == (7, None, CAPTION, shelved.name)
    for about, drawing in zip(told["drawings"], drawn, strict=True):
        assert (about["seed"], about["rank"], about["times"]) == (drawing.seed, drawing.rank, drawing.times)
        assert about["score"] == drawing.score


def test_the_command_draws_it_again(server, shelved):
    for caption, options in ((CAPTION, {"guidance": 1.5, "temperature": 0.7}), ("-5 degrees; `rm`", {"top_k": 3})):
        (told,) = server.draw(caption, n=1, seed=-3, **options).json()["drawings"]
        name, *words = shlex.split(told["command"])
        config = parse(Sample, name, words, "caption")
        assert (config.caption, config.n, config.keep, config.seed) == (caption, 1, 1, -3)
        assert config.sampling == replace(
            Sampling(chunk=4), **{name: options.get(name) for name in ("temperature", "top_k", "guidance")}, precision="fp32",
        )  # fmt: skip
        assert config.model == shelved.name == shelved.folder.name  # of an absolute path no more than the end


@pytest.mark.parametrize("guidance", [1, 2])  # with it there are twice as many rows in the batch
def test_a_stream_tells_rows_as_they_are_drawn_then_candidates_and_their_order(server, shelved, guidance):
    with server.events(CAPTION, n=6, seed=2, guidance=guidance) as events:
        told = list(events)
    names = [name for name, _ in told]
    rows = ["row"] * 4
    assert names == ["accepted", "queue", "chunk", *rows, "candidates", "chunk", *rows, "candidates", "done"]
    chunks = [values["seeds"] for name, values in told if name == "chunk"]
    assert chunks == [[2, 3, 4, 5], [6, 7]]
    parts = [values["drawings"] for name, values in told if name == "candidates"]
    assert [[one["seed"] for one in part] for part in parts] == chunks
    drawn = [drawing_of(base64.b64decode(one["png"]), "it") for part in parts for one in part]
    colours = [np.frombuffer(base64.b64decode(v["colours"]), np.uint8) for name, v in told if name == "row"]
    for first, count in ((0, 4), (4, 2)):  # the rows of a chunk are the codes of its candidates
        rows_GN = np.stack([row.reshape(count, 4, 3) for row in colours[first : first + 4]])
        codes_NI = np.stack([d.codes_I for d in drawn[first : first + count]])
        assert np.array_equal(rows_GN.transpose(1, 0, 2, 3).reshape(count, 16, 3), shelved.colours_K3[codes_NI])
    order = told[-1][1]["order"]
    scores = {one["seed"]: one["score"] for part in parts for one in part}
    assert [scores[one["seed"]] for one in order] == sorted((scores[o["seed"]] for o in order), reverse=True)
    same = {one["seed"]: one["same_as"] for part in parts for one in part}
    codes = {d.seed: d.codes_I.tolist() for d in drawn}
    for seed, first in same.items():
        equal = [other for other in sorted(codes) if codes[other] == codes[seed]]
        assert first == (None if equal[0] == seed else equal[0])
    assert sum(one["times"] for one in order) == 6 and {o["seed"] for o in order} == {s for s in same if not same[s]}


def test_colours_are_near_those_of_the_cells():
    """Of the ready model, whose codes mean something: of a drawn scene, in levels of 255. Of codes decoded alone they are 26 off."""
    pipeline = dalle.load("shapes", rerank=False, device="cpu", precision="fp32")
    scene_YX3 = np.asarray(draw(sample_scene(np.random.default_rng(0)), 64))
    codes_I = encode_with(pipeline.dvae, scene_YX3)
    image_YX3 = pipeline.reconstruct(scene_YX3[None], "fp32")[0].astype(float)
    cells_I3 = image_YX3.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)).reshape(64, 3)
    assert np.abs(code_colours(pipeline)[codes_I] - cells_I3).mean() < 15


def test_rows_and_a_region_of_an_image_are_kept(server, shelved, picture):
    side = picture.crop((8, 0, 56, 48)).resize((32, 32), Image.Resampling.BICUBIC)
    told = server.draw(CAPTION, n=2, image=_png(picture), rows=2).json()
    (note,) = told["notes"]
    assert "64×48" in note
    drawn = _drawn(told)
    kept = drawn[0].codes_I[:8]
    assert all(np.array_equal(d.codes_I[:8], kept) for d in drawn)
    codes_I = encode_with(shelved.pipeline.dvae, np.asarray(shelved.pipeline.prompt(picture, rows=2) and side))
    assert (codes_I[:8] == kept).mean() >= 0.5  # our resizer is not Pillow's
    assert np.array_equal(shelved.pipeline.prompt(picture, rows=2).codes_I[:8], kept)
    assert "--again" in told["drawings"][0]["command"]
    for drawing in drawn:  # which the record in its file is enough for
        assert count_differing_pixels(drawing, draw_again(shelved.pipeline, drawing)) == 0
    # a cell of 12 pixels of the square in the middle, which begins at 8
    region = [8 + 12, 12, 8 + 24, 36]
    with server.events(CAPTION, n=2, image=_png(picture), region=region) as events:
        values = {name: value for name, value in events}
    given_YX4 = np.frombuffer(base64.b64decode(values["chunk"]["given"]), np.uint8).reshape(4, 4, 4)
    hole = np.zeros((4, 4), bool)
    hole[1:3, 1] = True
    assert np.array_equal(given_YX4[..., 3] == 0, hole)
    whole_I = shelved.pipeline.prompt(picture, region=tuple(region)).codes_I
    assert np.array_equal(given_YX4[..., :3][~hole], shelved.colours_K3[whole_I.reshape(4, 4)[~hole]])


def test_a_variation_keeps_the_very_codes(server):
    told = server.draw(CAPTION, n=1, seed=1).json()
    (drawing,) = _drawn(told)
    more = _drawn(server.draw("a blue cross", n=3, seed=9, image=told["drawings"][0]["png"], rows=3).json())
    assert all(np.array_equal(d.codes_I[:12], drawing.codes_I[:12]) for d in more)
    assert {d.caption for d in more} == {"a blue cross"}


def test_what_was_painted_into_a_drawing_is_seen_and_noted(server, picture):
    """An editor keeps the text of a PNG, and so the codes of what was there before."""
    file = base64.b64decode(server.draw(CAPTION, n=1, seed=1).json()["drawings"][0]["png"])
    with Image.open(io.BytesIO(file)) as image:
        text = PngInfo()
        for name, value in image.text.items():
            text.add_itxt(name, value)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    painted = server.draw(CAPTION, n=2, rows=2, image=base64.b64encode(buffer.getvalue()).decode()).json()
    plain = server.draw(CAPTION, n=2, rows=2, image=_png(picture)).json()
    assert [d.codes_I.tolist() for d in _drawn(painted)] == [d.codes_I.tolist() for d in _drawn(plain)]
    assert "image: its pixels are not those that were drawn; they are encoded anew" in painted["notes"]


def test_a_grid_and_a_zip_of_files_with_their_records(server):
    answer = server.draw(CAPTION, n=3, temperature=2).json()
    files = [one["png"] for one in answer["drawings"]]
    grid = server.http.post("/bundle", json={"as": "grid", "drawings": files})
    assert grid.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(grid.content)) as image:
        assert image.text["captions"] == f'["{CAPTION}"]' and image.width > 3 * 128
    packed = server.http.post("/bundle", json={"as": "zip", "drawings": files})
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        names = archive.namelist()
        again = [drawing_of(archive.read(name), name) for name in names]
    assert names[0].startswith("01-a-red-circle-above-a-blue-square-") and len(names) == len(files)
    assert [d.seed for d in again] == [d.seed for d in _drawn(answer)]
    for wrong, told in (
        ({"as": "zip", "drawings": [files[0], "AAAA"]}, r"drawings[1]: image does not decode"),
        ({"as": "zip", "drawings": [_png(Image.new("RGB", (4, 4)))]}, "does not say how it was drawn"),
        ({"as": "zip", "drawings": ["é"]}, "drawings[0]: is no base64"),
        ({"as": "tar", "drawings": files}, "grid"),
        ({"as": "zip", "drawings": []}, "1 to 16"),
        ({"as": "zip", "drawings": files * 16}, "1 to 16"),
    ):
        answer = server.http.post("/bundle", json=wrong)
        assert answer.status_code == 422 and told in answer.json()["error"]
    together = sum(d.image.width * d.image.height for d in again)
    assert bundle({"as": "zip", "drawings": files}, Serve(upload_megapixels=together / 1e6))[1] == "application/zip"
    limits = Serve(upload_megapixels=(together - 1) / 1e6)
    with pytest.raises(ValueError, match=r"drawings\[2\]: image"):
        bundle({"as": "zip", "drawings": files}, limits)


def test_twenty_at_once_are_all_answered_or_told_to_wait(server, shelf, shelved, limits):
    def ask(place, http=server.http):
        return http.post(
            "/generate", json={"caption": CAPTION, "n": 2, "seed": place}, headers={"x-client": f"{place}"}
        )

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(ask, range(20)))
        assert [a.status_code for a in answers] == [200] * 20
        seeds = [{d["seed"] for d in a.json()["drawings"]} for a in answers]
        assert all(found <= {place, place + 1} and place in found for place, found in enumerate(seeds))
        server.settle()
        with running(shelf, replace(limits, most_waiting=4)) as small, gated(shelved) as gate:
            asked = [threads.submit(ask, place, small.http) for place in range(20)]
            # one is drawn, three wait, and the last place is for another address
            wait_for(lambda: sum(each.done() for each in asked) == 16)
            gate.open()
            answers = [each.result() for each in asked]
        told = [a for a in answers if a.status_code != 200]
        assert len(told) == 16 and {a.status_code for a in told} == {503}
        assert {a.headers["retry-after"] for a in told} == {"3"}
        assert all("come again" in a.json()["error"] for a in told)
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Job]  # nor what was drawn for them


def test_who_hangs_up_is_not_drawn_for_within_a_row(server, shelved):
    def held():  # after a row and one
        wait_for(lambda: server.artist.slots == before + 5)

    def hang_up_on_a_stream():
        with server.events(CAPTION, n=16) as events:
            assert next(values for name, values in events if name == "row")["row"] == 0
            held()

    def hang_up_on_json():
        host, port = server.address.removeprefix("http://").split(":")
        body = json.dumps({"caption": CAPTION, "n": 16})
        head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"{head}\r\n\r\n{body}".encode())
            held()

    for hang_up in (hang_up_on_a_stream, hang_up_on_json):
        server.settle()
        before = server.artist.slots
        with gated(shelved) as gate:
            gate.let(5)
            hang_up()
            wait_for(lambda: server.turns._drawn.gone)  # it is noticed, though nothing more is drawn or sent
            gate.open()
            server.settle()
            assert server.artist.slots - before <= 5 + 1
    assert server.draw(n=1).status_code == 200


def test_clients_take_turns_and_who_leaves_the_queue_is_not_drawn(server, shelved):
    server.settle()
    before = server.artist.slots
    with gated(shelved) as gate, server.events(CAPTION, client="a", n=16) as first:
        gate.let(4)
        next(event for event in first if event[0] == "row")
        with server.events("b", client="b", n=8) as second, server.events("c", client="c", n=4) as third:
            assert next(second)[0] == next(third)[0] == "accepted"
            assert {next(second)[1]["ahead"], next(third)[1]["ahead"]} == {1, 2}
            with server.events("d", client="d", n=4) as gone:
                assert next(gone)[0] == "accepted" and next(gone) == ("queue", {"ahead": 3})
            wait_for(lambda: server.turns.waiting == 2)
            gate.open()
            names = [[name for name, _ in events] for events in (third, second, first)]
    assert all(each[-1] == "done" for each in names)
    server.settle()
    assert server.artist.slots - before == 16 * (4 + 2 + 1)  # the chunks of those who stayed, and no more


def test_what_takes_too_long_is_answered_with_what_is_there(shelf, shelved, limits, monkeypatch):
    chunk, clock = shelved.pipeline.chunk, SimpleNamespace(now_s=0.0, slot_s=0.02)

    def timed(reading, first_seed, sampling, prompt=None, progress=lambda slot: None):
        def tick(slot):
            clock.now_s += clock.slot_s
            progress(slot)

        return chunk(reading, first_seed, sampling, prompt, tick)

    monkeypatch.setattr(shelved.pipeline, "chunk", timed)
    monkeypatch.setattr("dalle.web.artist.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    with running(shelf, replace(limits, seconds=0.5)) as server:
        told = server.draw(CAPTION, n=16).json()
        # four of sixteen slots took 0.32 s; of the next four the third row ended after the time
        assert 0 < len(told["drawings"]) <= told["drawn"] == 4 and told["seconds"] == 0.56
        assert told["stopped"].startswith("stopped after 0.5 s")
        clock.slot_s = 0.2
        answer = server.draw(CAPTION, n=16)
        assert answer.status_code == 503 and "before the first candidates" in answer.json()["error"]
        clock.slot_s = 0.0311  # the last slot of the first chunk is drawn in time
        assert server.draw(CAPTION, n=4).json()["stopped"] is None


def test_shut_down_it_ends_what_is_drawn(shelf, shelved, limits):
    answers = []
    with slowed(shelved, 0.05), ThreadPoolExecutor(2) as threads, running(shelf, limits) as server:
        asked = [threads.submit(server.draw, CAPTION, n=16) for _ in range(2)]
        while not (server.turns.drawing and server.turns.waiting):
            time.sleep(0.01)
        server.artist.close()
        answers = [each.result() for each in asked]
        assert server.draw().status_code == 503
    assert [a.status_code for a in answers] == [503, 503] and "shut down" in answers[0].json()["error"]


def test_one_thread_loads_and_draws(shelf, shelved, limits, monkeypatch):
    """Each thread that has begun PyTorch's products keeps helpers, and where they are more than the cores all of them sleep between
    two products."""
    threads, told = [], queue.SimpleQueue()
    monkeypatch.setattr(serving, "load_shelf", lambda _: (threads.append(threading.get_ident()), shelf)[1])
    plain = shelved.pipeline.chunk
    monkeypatch.setattr(
        shelved.pipeline, "chunk", lambda *a, **k: (threads.append(threading.get_ident()), plain(*a, **k))[1]
    )
    servers, made = [], serving.uvicorn.Server
    monkeypatch.setattr(serving.uvicorn, "Server", lambda settings: (servers.append(made(settings)), servers[-1])[1])
    whole = threading.Thread(target=serving.serve, args=(replace(limits, port=0), told.put), daemon=True)
    whole.start()
    address = told.get(timeout=20)
    wait_for(lambda: servers[0].started)
    assert httpx.post(f"{address}generate", json={"caption": CAPTION, "n": 2}, timeout=60).status_code == 200
    servers[0].should_exit = True
    whole.join(20)
    assert not whole.is_alive() and len(threads) == 2 and len(set(threads)) == 1
    assert threads[0] != whole.ident


def test_a_drawing_that_fails_is_told_and_the_next_is_drawn(server, shelved, monkeypatch, caplog):
    def broken(*_, **__):
        raise KeyError("/secret/place")

    with monkeypatch.context() as patched:
        patched.setattr(shelved.pipeline, "chunk", broken)
        answer = server.draw()
    assert answer.status_code == 500 and answer.json() == {"error": "the drawing failed; see the server's log for why"}
    assert "/secret/place" in caplog.text
    with server.events(n=1) as events:
        assert [name for name, _ in events][-1] == "done"


def test_when_memory_runs_out_fewer_are_drawn_together(server, shelved, monkeypatch):
    import torch

    chunk, widths = shelved.pipeline.chunk, []

    def small(reading, first_seed, sampling, prompt=None, progress=lambda slot: None):
        widths.append(sampling.chunk)
        if sampling.chunk > 2:
            raise torch.OutOfMemoryError("out of memory")
        return chunk(reading, first_seed, sampling, prompt, progress)

    with monkeypatch.context() as patched:
        patched.setattr(shelved.pipeline, "chunk", small)
        with server.events(CAPTION, n=6, seed=2) as events:
            told = list(events)
    assert widths == [4, 2, 2, 2]  # once, and then no more
    assert [len(v["drawings"]) for name, v in told if name == "candidates"] == [2, 2, 2]
    rows = [len(base64.b64decode(v["colours"])) for name, v in told if name == "row"]
    assert rows == [2 * 4 * 3] * 4  # of the last turn, whose width was known
    assert told[-1][0] == "done" and sum(one["times"] for one in told[-1][1]["order"]) == 6
