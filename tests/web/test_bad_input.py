"""What may be wrong with a request, and who may ask: a clear line of JSON each time, the others unaffected, no file reachable."""

import base64
import gc
import io
import json
import shlex
import socket
import struct
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dalle.cli.arguments import parse
from dalle.cli.serve import serve
from dalle.config import Serve, StackGANModel
from dalle.decoding.token_loop import TokenLoop
from dalle.models.folder import save_weights
from dalle.models.stackgan.generators import generator
from dalle.web import serving
from dalle.web.asking import request_schema
from dalle.web.guard import Guard
from dalle.web.reading import _noted
from dalle.web.shelf import load_shelf
from tests.web.running import running, slowed


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _picture(size=(32, 32), format="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(buffer, format)
    return buffer.getvalue()


def _hundred_megapixels() -> bytes:
    """A PNG of 10,000 by 10,000 pixels that is whole, and a hundred kilobytes: an honest bomb."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    rows = zlib.compressobj()
    data = b"".join(rows.compress(bytes(10_001)) for _ in range(10_000)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


GOOD = _base64(_picture())
WRONG = [
    ({"caption": ""}, "caption: is empty"),
    ({"caption": " \n "}, "caption: is empty"),
    ({}, "caption: is missing"),
    ({"caption": "x" * 10_000}, "caption: has 10,000 characters, of which at most 1,000 are taken"),
    ({"caption": 7}, "caption 7: must be text"),
    ({"caption": "\ud800"}, "is no text"),
    ({"caption": "a", "model": "icoms"}, "model 'icoms': no such one here; there are "),
    ({"caption": "a", "model": "../../etc"}, "model '../../etc': no such one here"),
    ({"caption": "a", "n": 17}, "n 17: must be a whole number of at least 1 and at most 16"),
    ({"caption": "a", "n": 0}, "n 0: must be"),
    ({"caption": "a", "n": True}, "n True: must be"),
    ({"caption": "a", "n": 2.5}, "n 2.5: must be"),
    ({"caption": "a", "n": None}, "n None: must be"),
    ({"caption": "a", "seed": 2**53}, "seed 9007199254740992: must be"),
    ({"caption": "a", "temperature": 0}, "temperature 0: must be a number above 0 and at most 100, or null"),
    ({"caption": "a", "temperature": float("nan")}, "temperature nan: must be"),
    ({"caption": "a", "top_p": 1.1}, "top_p 1.1: must be"),
    ({"caption": "a", "top_k": 17}, "top_k 17: this prior chooses among 16 codes"),
    ({"caption": "a", "guidance": -1}, "guidance -1: must be"),
    ({"caption": "a", "temprature": 1}, "'temprature': unknown; the nearest known one is temperature"),
    ({"caption": "a", "image": GOOD}, "give it with rows"),
    ({"caption": "a", "rows": 1}, "give it with rows"),
    ({"caption": "a", "image": GOOD, "rows": 1, "region": [0, 0, 8, 8]}, "rows and region: give one of them"),
    ({"caption": "a", "image": GOOD, "rows": 4}, "rows 4: must lie between 1 and 3"),
    ({"caption": "a", "image": GOOD, "rows": -1}, "rows -1: must be"),
    ({"caption": "a", "image": GOOD, "region": [0, 0, 8]}, "region [0, 0, 8]: must be a list of 4 whole numbers"),
    ({"caption": "a", "image": GOOD, "region": [0, 0, 8, "8"]}, "region[3] '8': must be a whole number"),
    ({"caption": "a", "image": GOOD, "region": [8, 0, 8, 8]}, "region 8,0,8,8: is empty"),
    ({"caption": "a", "image": GOOD, "region": [0, 0, 33, 8]}, "region 0,0,33,8: leaves the prompt image"),
    ({"caption": "a", "image": GOOD, "region": [0, 0, 32, 32]}, "is the whole image"),
    ({"caption": "a", "image": "!", "rows": 1}, "image: is no base64"),
    ({"caption": "a", "image": _base64(b"GIF"), "rows": 1}, "image: does not decode: no image in PNG"),
    ({"caption": "a", "image": _base64(_picture()[:900]), "rows": 1}, "image: does not decode"),
    ({"caption": "a", "image": _base64(b"%!PS-Adobe-3.0 EPSF"), "rows": 1}, "image: does not decode"),
    ([], "the request: must be a JSON object"),
]


@pytest.mark.parametrize(("values", "told"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_told_in_one_line(server, values, told):
    headers = {"content-type": "application/json"}
    answer = server.http.post("/generate", content=json.dumps(values), headers=headers)
    assert answer.status_code == 422, answer.text
    (name, message), *more = answer.json().items()
    assert name == "error" and told in message and "\n" not in message and len(message) < 300 and not more


def test_a_hundred_megapixels_are_refused_by_their_header(server):
    bomb = _hundred_megapixels()
    assert len(bomb) < 200_000
    began_s = time.monotonic()
    answer = server.draw(image=_base64(bomb), rows=1)
    assert answer.status_code == 422
    assert answer.json()["error"] == (
        "image: 10000×10000 pixels: over the limit of 25,000,000, so make it smaller; send another"
    )
    assert time.monotonic() - began_s < 2  # their pixels take longer to unpack


def test_what_is_no_json_or_too_large_is_refused(server):
    def post(content, **headers):
        return server.http.post("/generate", content=content, headers={"content-type": "application/json", **headers})

    for content in (b"{", b"\xff", b"[" * 100_000, b'{"caption": "a", "n": ' + b"9" * 5000 + b"}"):
        answer = post(content)
        assert answer.status_code == 422 and answer.json() == {"error": "the request: is no JSON; send it as such"}
    assert post(b"{}", **{"content-type": "text/plain"}).status_code == 415
    large = b'{"caption": "' + b"a" * 2_000_000 + b'"}'
    for content in (large, iter([large[:1_000_000], large[1_000_000:]])):  # with its length, and in chunks without it
        answer = post(content)
        assert answer.status_code == 413 and answer.json()["error"].startswith("the request is larger than 2 MB")
    assert post(large[:1_000_000] + b'"}').status_code == 422


def test_html_in_a_caption_comes_back_as_text(server):
    caption = "<script>alert(1)</script> & <b>"
    answer = server.draw(caption, n=1)
    assert (
        answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    )
    told = answer.json()
    assert told["caption"] == caption and told["drawings"][0]["file"] == "script-alert-1-script-b-0.png"


def test_lines_and_blanks_of_a_caption_are_one_blank(server):
    told = server.draw(" a red\n\n circle ", n=1).json()
    assert told["caption"] == "a red circle" and told["drawings"] == server.draw("a red circle", n=1).json()["drawings"]


def test_words_that_were_never_seen_and_cut_captions_are_noted(server):
    told = server.draw("a mauve " + "red circle " * 20, n=1).json()
    assert any("'mauve' was in no training caption" in note for note in told["notes"])
    assert any("are read; cut off:" in note for note in told["notes"])
    assert server.draw(n=1).json()["notes"] == []  # those of others are theirs


def test_notes_go_to_those_whose_they_are(server):
    words = ["maroon", "orange", "mauve", "beige"] * 4
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda word: server.draw(f"a {word} circle", n=1).json(), words))
    for word, told in zip(words, answers, strict=True):
        assert told["notes"] == [f"{word!r} was in no training caption"]


PATHS = [
    *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/page/index.html"),
    *("/app.py", "/page.js/../../app.py", "/page.js%00", "/.%00./", "/%5c..%5capp.py", "/page.css/", "/generate/"),
    *("/file:///etc/passwd", "/index.html", "/docs", "/openapi.json"),
]


def _raw(server, request: bytes) -> tuple[int, bytes]:
    """Status and body of an answer to what no client of good manners sends."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        data = b""
        while part := connection.recv(1 << 16):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("path", PATHS)
def test_no_address_leads_to_a_file(server, path):
    status, body = _raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status == 404 and json.loads(body) == {
        "error": "there is nothing here; open / for the page, or see docs/serving.md for what can be asked"
    }


def test_an_answer_that_fails_says_no_more(caplog):
    """Nothing of what went wrong, which the log has."""

    async def fails(scope, receive, send):
        raise RuntimeError("the secret")

    answer = TestClient(Guard(fails, None), raise_server_exceptions=False).get("/")
    assert answer.status_code == 500 and answer.json() == {"error": "the server failed; see its log for why"}
    assert "the secret" in caplog.text and "content-security-policy" in answer.headers


def test_every_answer_has_strict_headers(server):
    for path, kind in (
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/models", "application/json"),
        ("/schema", "application/json"),
        ("/healthz", "application/json"),
        ("/nothing", "application/json"),
        ("/generate", "application/json"),
    ):
        answer = server.http.get(path, headers={"origin": server.address})
        assert answer.headers["content-type"] == kind
        policy = answer.headers["content-security-policy"]
        assert (
            policy.startswith("default-src 'none'; script-src 'self'; ")
            and "unsafe" not in policy
            and "http" not in policy
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert (
            not [name for name in answer.headers if name.startswith("access-control")]
            and "server" not in answer.headers
        )
    assert answer.status_code == 405 and answer.json() == {
        "error": "GET is not answered here; see docs/serving.md for what can be asked"
    }
    assert server.http.get("/healthz").json() == {"status": "ok", "waiting": 0, "drawing": False}


def test_pages_of_other_sites_are_refused(server, shelf, limits):
    def status(where=server, path="/healthz", method="GET", **headers):
        return where.http.request(
            method, path, headers={n.replace("_", "-"): v for n, v in headers.items()}
        ).status_code

    assert status() == status(host="LOCALHOST:8000") == status(host="[::1]:9") == status(origin=server.address) == 200
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[::1", ""):
        assert status(host=host) == 421  # a name that was made to lead here
    assert status(origin="https://evil.example") == status(origin="null") == status(sec_fetch_site="cross-site") == 403
    assert status(sec_fetch_site="same-site") == 403  # of another port of this machine
    assert status(sec_fetch_site="same-origin") == status(sec_fetch_site="none") == 200
    assert status(path="/generate", method="POST", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 403
    assert status(path="/generate", method="POST", origin="http://evil.example:8000") == 403
    assert status(path="/", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200  # a link
    with running(shelf, replace(limits, host="0.0.0.0", names="")) as everywhere:
        everywhere.http.base_url = str(everywhere.http.base_url).replace("0.0.0.0", "127.0.0.1")
        assert status(everywhere, host="draw.example") == 200
        assert status(everywhere, host="draw.example", origin="https://evil.example") == 403
    with running(shelf, replace(limits, names="draw.example other.example")) as named:
        assert status(named, host="Draw.example") == status(named, host="localhost") == 200
        assert status(named, host="evil.example") == 421


def test_a_client_that_goes_away_in_the_middle_leaves_nothing_behind(server, shelved):
    host, port = server.address.removeprefix("http://").split(":")
    head = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    )
    with slowed(shelved, 0.005):
        for sent in (b"", b"GET", head, head + b'{"caption": ', head.replace(b"500", b"17") + b'{"caption": "ab"}'):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(sent)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a cut cable
        assert server.draw(n=1).status_code == 200
    server.settle()
    gc.collect()


def test_the_schema_is_what_requests_are_refused_by(server, limits):
    schema = server.http.get("/schema").json()
    assert schema == request_schema([next(iter(schema["properties"]["model"]["enum"]))], limits)
    assert schema["required"] == ["caption"] and schema["additionalProperties"] is False
    defaults = {name: rule["default"] for name, rule in schema["properties"].items() if "default" in rule}
    assert set(defaults) == set(schema["properties"]) - {"caption"}
    answer = server.draw(**{**defaults, "n": 1})
    assert answer.status_code == 200  # what it says is taken where nothing is given may be given
    plain = server.draw(n=1).json()
    assert answer.json()["drawings"] == plain["drawings"]
    assert schema["properties"]["n"]["maximum"] == 16 == server.http.get("/models").json()["limits"]["most_n"]


def test_the_command_line():
    config = parse(Serve, "dalle-serve", ["--model", "shapes", "runs/my own", "--port", "0", "--rerank", "false"])
    assert config.models == ("shapes", "runs/my own") and config.port == 0 and config.rerank is False
    assert parse(Serve, "dalle-serve", ["--model", "a b"]).models == ("a", "b")
    assert parse(Serve, "dalle-serve", []).models == ("icons",)
    assert parse(Serve, "dalle-serve", ["--host", "0.0.0.0"]).hosts is None
    assert "draw.example" in parse(Serve, "dalle-serve", ["--host", "0.0.0.0", "--names", "draw.example"]).hosts
    assert parse(Serve, "dalle-serve", []).hosts == {"127.0.0.1", "localhost", "::1"}
    for argv, told in (
        (["--model", ""], "model: is empty"),
        (["--model", "a", "a"], "names one twice"),
        (["--model", "it's"], "No closing quotation"),
        (["--port", "65536"], "port 65536"),
        (["--seconds", "0"], r"seconds 0.*must be positive"),
        (["--upload_megapixels", "200"], "upload_megapixels 200"),
        (["--most_n", "0"], "most_n 0"),
        (["shapes"], "unexpected 'shapes'"),
        (["--model", "shpes"], "the nearest is shapes"),
    ):
        with pytest.raises(ValueError, match=told):
            serve(argv)


def test_an_address_that_cannot_be_had_is_told_before_models_are_loaded(models, monkeypatch):
    monkeypatch.setattr(serving, "load_shelf", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("192.0.2.1", 0)):
            with pytest.raises(OSError) as told:
                serve(["--model", str(models), "--host", host, "--port", str(port)])
            assert told.value.filename == f"host {host}, port {port}" and told.value.strerror


def test_while_one_loads_another_is_told_that_the_port_is_taken(models, monkeypatch):
    """A port that is bound and not listened on could be bound twice."""

    class Loading(Exception):
        pass

    def load(config):
        with pytest.raises(OSError, match=f"host 127.0.0.1, port {port}"), serving.listening(config):
            pass
        raise Loading

    monkeypatch.setattr(serving, "load_shelf", load)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for _ in range(2):  # and where loading fails it is free again
        with pytest.raises(Loading):
            serve(["--model", str(models), "--port", str(port)])


def test_a_library_that_is_missing_is_told(monkeypatch):
    monkeypatch.delitem(sys.modules, "dalle.web.serving")
    monkeypatch.delattr("dalle.web.serving", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match=r"pip install 'dalle\[web\]'"):
        serve([])


def test_models_are_called_as_they_were_named_but_for_where_they_lie(models, limits, tmp_path, monkeypatch):
    for name in ("a/mine", "b/mine"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(models)
    monkeypatch.chdir(tmp_path / "a")
    drawn = []
    codes = TokenLoop.codes
    monkeypatch.setattr(TokenLoop, "codes", lambda *given: drawn.append(given[3].chunk) or codes(*given))

    def names(*given):
        return list(load_shelf(replace(limits, model=shlex.join(given))))

    assert names("../b/mine") == ["mine"]
    (tmp_path / "a/runs").mkdir()
    (tmp_path / "a/runs/mine").symlink_to(models)
    assert names("runs/mine", str(tmp_path / "b/mine")) == ["runs/mine", "mine"]
    assert drawn == [limits.chunk] * 3  # each was begun with, as it will draw
    with pytest.raises(ValueError, match="is called mine on the page, as is another one"):
        names("mine", "../b/mine")


def test_a_gan_is_refused(limits, tmp_path):
    config = StackGANModel(text_width=6, image_size_px=8, channels=4)
    save_weights(tmp_path, "stackgan", generator(config).state_dict(), config, {})
    with pytest.raises(ValueError, match=r"model .*: is a GAN, and the page draws codes"):
        load_shelf(replace(limits, model=shlex.join([str(tmp_path)])))


def test_a_server_says_where_its_limits_do_not_go_together(limits, recwarn):
    load_shelf(limits)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"most_n 16: .* of 32 px .* set --upload_mb 1 --upload_megapixels 1 where"):
        load_shelf(replace(limits, upload_mb=4 * 16 * 32**2 / 1e6 - 1e-6))
    with pytest.warns(UserWarning, match="most_n 16"):
        load_shelf(replace(limits, upload_megapixels=16 * 32**2 / 1e6 - 1e-6))


def test_what_another_thread_warns_of_is_no_note():
    with warnings.catch_warnings(record=True) as elsewhere:
        warnings.simplefilter("always")
        with _noted() as notes:
            warnings.warn("mine", stacklevel=1)
            thread = threading.Thread(target=warnings.warn, args=("theirs",))
            thread.start()
            thread.join()
    assert notes == ["mine"] and [str(each.message) for each in elsewhere] == ["theirs"]
