"""The page in a real headless browser: draw, cancel, an image of which some is kept, two tabs, a reload, a phone."""

import base64
import json
import re
import time
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dalle.sampling.again import count_differing_pixels
from dalle.sampling.drawing import drawing_of, read_drawing
from tests.evaluation.chromium import PROGRAM, Browser
from tests.web.running import gated, running, slowed, wait_for

if PROGRAM is None:
    warnings.warn("no Chromium here: the page of dalle-serve is not tried in a browser", stacklevel=1)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium")

CAPTION = '<img src=x onerror="document.title=1"> & <b>a red circle</b>'
DONE = "!at('draw').hidden"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    browser.call("Page.addScriptToEvaluateOnNewDocument", source="const at = id => document.getElementById(id)")
    yield browser
    browser.close()


@pytest.fixture
def page(started, server):
    """As if it had never seen the page."""
    server.settle()
    started.show(1280, 860)
    started.open(f"{server.address}/healthz")
    started.run("localStorage.clear(); sessionStorage.clear()")
    # waits until no page has it open
    started.run(
        "new Promise((done, failed) => { const asked = indexedDB.deleteDatabase('dalle-serve');"
        " asked.onsuccess = () => done(true); asked.onerror = failed })"
    )
    _open(started, server)
    started.events.clear()
    yield started
    _nothing_wrong(started, server)


def _open(browser, server):
    browser.call("Page.bringToFront")  # the clocks of a page behind others are slow
    browser.open(server.address)
    browser.wait("document.body.dataset.ready === 'yes'")


def _fill(browser, caption, n=8, seed=5):
    browser.run(f"at('caption').value = {json.dumps(caption)}; at('n').value = {n}; at('seed').value = {seed}")
    # at which few are the same
    browser.run("at('temperature').value = 1.5; at('temperature').dispatchEvent(new Event('input'))")


def _draw(browser, caption=CAPTION, **options):
    _fill(browser, caption, **options)
    browser.run("at('ask').requestSubmit()")


def _seeds(browser):
    """Of the candidates that are there, in their order."""
    browser.wait("[...document.querySelectorAll('.tile img:not([hidden])')].every(image => image.closest('.done'))")
    return browser.run("[...document.querySelectorAll('.tile.done')].map(tile => Number(tile.dataset.seed))")


def _ranked(server, **asked):
    return [one["seed"] for one in server.draw(**asked, temperature=1.5).json()["drawings"]]


def _nothing_wrong(browser, server):
    """No script failed, and nothing was asked of anybody but the server itself."""
    told = [event for event in browser.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    told = [
        event for event in told if "Canvas2D: Multiple readback" not in json.dumps(event)
    ]  # which tests do, not the page
    assert not told, told
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(url.startswith((server.address, "data:", "blob:")) for url in asked), asked


def _downloaded(browser, name):
    until = time.monotonic() + 30
    while not (browser.downloads / name).is_file():
        assert time.monotonic() < until, list(browser.downloads.iterdir())
        time.sleep(0.05)
    return browser.downloads / name


def test_a_caption_is_drawn_row_by_row_and_the_best_moves_to_the_front(page, server, shelved):
    _fill(page, CAPTION)
    tops = "['title', 'track', 'tiles', 'draw'].map(id => (at(id).hidden ? at('cancel') : at(id)).getBoundingClientRect().top)"
    page.run("at('caption').focus()")
    with slowed(shelved, 0.02):
        page.press("Enter")
        page.wait("document.querySelectorAll('.tile[data-seed=\"5\"]').length === 1")
        before = page.run(tops)
        page.wait(
            "[...document.querySelectorAll('.tile.drawing')].some(tile => tile.style.getPropertyValue('--row') === '2')"
        )
        filled = "[...document.querySelectorAll('.tile.drawing canvas')].map(c => { const d = c.getContext('2d').getImageData(0, 0, 4, 4).data;"
        filled += " return [0, 1, 2, 3].map(row => d[16 * row + 3]).join() })"
        rows = page.run(filled)
        assert len(rows) == 4 and set(rows) <= {"255,255,0,0", "255,255,255,0"}
        assert not page.run("at('cancel').hidden") and page.run("at('stop').innerText") == "Cancel"
        page.wait("document.querySelectorAll('.tile.done').length >= 2")
        assert page.run("at('status').innerText") == "Drawing: 4 of 8"
        page.wait(DONE)
    assert np.allclose(page.run(tops), before, atol=0.6)  # nothing has jumped; half a pixel is rounding
    page.wait("document.querySelectorAll('.tile:not(.done)').length === 0")
    wanted = _ranked(server, caption=CAPTION, n=8, seed=5)
    assert _seeds(page) == wanted
    assert page.run("at('status').innerText").startswith("Done in ") and page.run("document.title").startswith("dalle")
    assert page.run("at('title').innerText") == CAPTION  # as text, no element
    page.run("document.querySelector('.tile button').click()")
    page.wait("at('one').open")
    facts = page.run("['one-title', 'one-seed', 'one-rank', 'command'].map(id => at(id).innerText)")
    best = server.draw(CAPTION, n=8, seed=5, temperature=1.5).json()["drawings"][0]
    assert facts == [CAPTION, str(best["seed"]), f"1 of {len(wanted)}", best["command"]]
    assert page.run("at('one-score').innerText") == f"{best['score']:.4f}"
    page.press("ArrowRight")
    assert page.run("at('one-seed').innerText") == str(wanted[1])
    page.run("at('copy').click()")
    page.wait("at('copy').innerText !== 'Copy'")
    page.run("at('save').click()")
    file = _downloaded(page, page.run("at('save').download"))
    drawing = read_drawing(file)
    assert (drawing.seed, drawing.caption) == (wanted[1], CAPTION)
    told = next(
        o for o in server.draw(CAPTION, n=8, seed=5, temperature=1.5).json()["drawings"] if o["seed"] == wanted[1]
    )
    assert count_differing_pixels(drawing, drawing_of(base64.b64decode(told["png"]), "it")) == 0
    page.press("Escape")
    page.wait("!at('one').open")
    page.wait(f"document.activeElement.closest('.tile')?.dataset.seed === '{wanted[1]}'")  # once its event has come
    page.run("at('as-grid').click(); at('as-zip').click()")
    with Image.open(_downloaded(page, "grid.png")) as grid:
        assert json.loads(grid.text["captions"]) == [CAPTION]
    with zipfile.ZipFile(_downloaded(page, "drawings.zip")) as archive:
        assert len(archive.namelist()) == len(wanted)


def test_cancel_stops_the_server_and_keeps_what_was_finished(page, server, shelved):
    with slowed(shelved, 0.02):
        _draw(page, n=16)
        page.wait(
            "document.querySelectorAll('.tile.done').length >= 1 && document.querySelectorAll('.tile.drawing').length"
        )
        page.run("at('cancel').click()")
        page.wait(DONE)
        slots = server.artist.slots
        server.settle()
        assert server.artist.slots - slots <= 16  # of 48 that were left; that it is a row at most is tried elsewhere
    assert page.run("at('status').innerText").startswith("Cancelled: ")
    finished = len(_seeds(page))
    assert 0 < finished <= 12 and page.run("document.querySelectorAll('.tile').length") == finished
    page.wait("document.querySelectorAll('.entry').length === 1")  # kept in the history
    page.run("at('caption').value = '  '; at('ask').requestSubmit()")
    assert page.run("at('alert').innerText") == "Say what to draw: the caption is empty."
    before = page.run("at('status').innerText")
    _draw(page, n=99)  # of a page that is older than its server
    page.wait("!at('draw').hidden && !at('alert').hidden")
    assert page.run("at('alert').innerText") == "n 99: must be a whole number of at least 1 and at most 16"
    assert page.run("at('status').innerText") == before and len(_seeds(page)) == finished
    page.events.clear()  # the browser's log has the 422
    _draw(page, "a blue cross", n=2)
    page.wait(DONE)
    assert page.run("at('alert').hidden") and page.run("at('title').innerText") == "a blue cross"
    page.wait("document.querySelectorAll('.entry').length === 2")
    page.run("document.querySelectorAll('.entry > button:first-child')[1].click()")
    page.wait(f"document.querySelectorAll('.tile.done').length === {finished}")
    assert page.run("at('title').innerText") == CAPTION
    page.run("at('forget').click()")
    page.wait("at('history').hidden")


def test_an_image_is_kept_by_rows_by_a_drawn_rectangle_and_as_a_variation(page, server, shelved, tmp_path):
    picture = Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    picture.save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "wide.png").read_bytes()[:300])
    Image.new("1", (5001, 5000)).save(tmp_path / "large.png")
    Image.new("1", (5000, 5000)).save(tmp_path / "as large as may be.png")
    (tmp_path / "heavy.png").write_bytes(bytes(1_480_001))
    for name, told in (
        ("heavy", "The file is larger than the 1.5 MB that this server takes."),
        ("large", "The image has 5001 by 5000 pixels; this server takes 25 million of them."),
        ("broken", "This file is no image that the browser can show."),
    ):
        page.choose_file("#file", tmp_path / f"{name}.png")
        page.wait(f"at('alert').innerText === {json.dumps(told)}")
        assert not page.run("at('alert').hidden") and page.run("at('editor').hidden && !at('file').files.length")
    page.run("at('more').open = true")
    page.choose_file("#file", tmp_path / "wide.png")
    page.wait("!at('editor').hidden")
    assert page.run("at('alert').hidden")  # which was of another file
    # all of the editor is to be seen, above the button that stays at the foot
    page.wait("at('kept').getBoundingClientRect().bottom <= at('draw').getBoundingClientRect().top")
    assert page.run("document.querySelector('.modes').getBoundingClientRect().top") >= 0
    page.run("at('more').open = false; at('no-image').click()")
    page.choose_file("#file", tmp_path / "as large as may be.png")
    page.wait("!at('editor').hidden")
    page.choose_file("#file", tmp_path / "wide.png")
    page.wait("at('rows').value === '2' && at('picture').getContext('2d').getImageData(9, 9, 1, 1).data[0] > 0")
    page.run("at('rows').value = 3; at('rows').dispatchEvent(new Event('input'))")
    assert page.run("at('kept').innerText") == "The top 3 rows of cells are kept; the rest is drawn."
    page.run("at('board').focus()")
    page.press("ArrowUp")
    assert page.run("at('rows-out').innerText") == "2 of 4"

    def drawn(caption):
        _draw(page, caption, n=2)
        page.wait(DONE)
        page.run("document.querySelector('.tile button').click(); at('save').click()")
        assert "--again" in page.run("at('command').innerText")
        file = _downloaded(page, page.run("at('save').download"))
        page.run("at('one').close()")
        return read_drawing(file)

    kept = drawn("rows kept")
    wanted = shelved.pipeline.prompt(picture, rows=2)
    assert np.array_equal(kept.codes_I[:8], wanted.codes_I[:8])
    page.run("document.querySelector('[value=region]').click(); at('board').scrollIntoView()")
    left, top, side = page.run("(box => [box.left, box.top, box.width])(at('veil').getBoundingClientRect())")

    def middle(column, row):
        return left + side * (column + 0.5) / 4, top + side * (row + 0.5) / 4

    page.drag(middle(0, 0), middle(1, 2))
    assert page.run("at('kept').innerText").startswith("Drawn: columns 1 to 2 of rows 1 to 3.")
    page.drag(middle(0, 0), middle(3, 3))  # all of it: the last that leaves something stays
    assert "columns 1 to 1 of rows 1 to 1" in page.run("at('kept').innerText")
    page.drag(middle(2, 3), middle(1, 1))  # against the reading direction
    assert page.run("at('kept').innerText").startswith("Drawn: columns 2 to 3 of rows 2 to 4.")
    page.press("ArrowRight")
    assert page.run("at('kept').innerText").startswith("Drawn: columns 3 to 4 of rows 2 to 4.")
    hole = drawn("region drawn")
    outside = np.ones((4, 4), bool)
    outside[1:4, 2:4] = False
    assert np.array_equal(hole.codes_I[outside.flatten()], wanted.codes_I[outside.flatten()])
    given = json.loads(json.dumps(hole.settings["given"]))
    assert np.array_equal(np.unpackbits(np.frombuffer(base64.b64decode(given["kept"]), np.uint8)), outside.flatten())
    page.run("document.querySelector('.tile button').click(); at('vary').click()")
    page.wait("!at('one').open && at('rows-out').innerText === '2 of 4'")
    assert page.run("at('caption').value") == "region drawn"
    varied = drawn("a variation")
    assert np.array_equal(varied.codes_I[:8], hole.codes_I[:8])  # the very codes, not those of its pixels
    page.run("at('no-image').click()")
    _draw(page, n=1)
    page.wait(DONE)
    page.run("document.querySelector('.tile button').click()")
    assert "--again" not in page.run("at('command').innerText")


def test_of_files_that_are_chosen_one_after_the_other_the_last_counts(page, server, tmp_path):
    """However long each takes to be decoded."""
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    held = "window.held = []; const decode = createImageBitmap; window.createImageBitmap = file =>"
    page.run(held + " new Promise((ok, no) => window.held.push(() => decode(file).then(ok, no)))")
    shown = "[...at('picture').getContext('2d').getImageData(9, 9, 1, 1).data].slice(0, 3).join()"

    def choose(name):
        before = page.run("held.length")
        page.choose_file("#file", tmp_path / f"{name}.png")
        page.wait(f"held.length === {before + 1}")

    def decoded(number):
        page.run(
            f"(async () => {{ await held[{number}]().catch?.(() => 0); await new Promise(done => setTimeout(done, 50)) }})()"
        )

    choose("red"), choose("blue")
    decoded(1)
    page.wait("!at('editor').hidden")
    decoded(0)
    assert page.run(shown) == "0,0,255"
    choose("broken"), choose("red")
    decoded(3)
    page.wait(f"{shown} === '255,0,0'")
    decoded(2)
    assert page.run("at('alert').hidden")
    choose("broken")
    decoded(4)
    page.wait("!at('alert').hidden")
    page.run("at('alert').textContent = 'The connection was lost.'")  # since then
    choose("blue")
    page.run("at('no-image').click()")
    decoded(5)
    assert page.run("at('editor').hidden && at('alert').innerText") == "The connection was lost."


def test_two_tabs_draw_at_once_and_share_what_was_drawn(page, server, shelved):
    other = page.tab()
    try:
        with gated(shelved) as gate:
            _draw(page, "the first tab", n=16, seed=1)
            first = page.at(other)
            page.call("Page.addScriptToEvaluateOnNewDocument", source="const at = id => document.getElementById(id)")
            _open(page, server)
            _draw(page, "the second tab", n=4, seed=100)
            wait_for(lambda: server.turns.drawing + server.turns.waiting == 2)  # before the first has drawn anything
            gate.open()
            page.wait(DONE)
        assert page.run("at('title').innerText") == "the second tab"
        assert set(_seeds(page)) <= {100, 101, 102, 103}
        page.at(first)
        page.wait(DONE)
        assert _seeds(page) == _ranked(server, caption="the first tab", n=16, seed=1)
        page.wait("document.querySelectorAll('.entry').length === 2")
        assert page.run("at('entries').innerText").index("first") < page.run("at('entries').innerText").index("second")
    finally:
        page.at(other)
        page.call("Page.close")
        page.at(first)


def test_reloaded_in_the_middle_it_draws_the_same_once_more(page, server, shelved):
    with slowed(shelved, 0.02):
        _draw(page, n=8, seed=7)
        page.wait("document.querySelectorAll('.tile.done').length >= 1")
        begun = server.artist.slots
        _open(page, server)
        page.wait("document.querySelectorAll('.tile').length === 8 && !at('cancel').hidden")
        assert page.run("at('caption').value") == CAPTION
    page.wait(DONE)
    server.settle()
    assert server.artist.slots - begun <= 16 + 2 * 16  # at most the rest of what was begun, and all once more
    assert _seeds(page) == _ranked(server, caption=CAPTION, n=8, seed=7)
    _open(page, server)
    assert page.run("at('draw').hidden") is False and _seeds(page) == []  # and not again
    page.wait("document.querySelectorAll('.entry').length === 1")


def test_when_many_wait_it_says_so_and_tries_again(started, shelf, shelved, limits):
    with running(shelf, replace(limits, most_waiting=1)) as server, slowed(shelved, 0.02):
        _open(started, server)
        with server.events(client="a", n=16) as one, server.events(client="b", n=16) as two:
            next(one), next(two)
            _draw(started, n=2)
            started.wait("at('status').innerText.startsWith('Many are drawing; trying again in ')")
        started.wait(DONE)
        assert started.run("at('status').innerText").startswith("Done in ") and started.run("at('alert').hidden")
        _draw(started, n=16, seed=50)
        started.wait("document.querySelector('.tile[data-seed=\"50\"]') !== null")
        started.wait("document.querySelectorAll('.tile.done').length >= 1")
        server.artist.close()
        started.wait(DONE)
        assert started.run("at('alert').innerText").startswith("the server is being shut down")
        assert len(_seeds(started)) >= 1
    started.events.clear()  # that the queue was full is in the browser's log too


def test_of_several_models_one_is_chosen(started, shelved, limits):
    with running({name: replace(shelved, name=name) for name in ("one", "two")}, limits) as server:
        started.show(1280, 860)
        _open(started, server)
        assert started.run("[...at('model').options].map(option => option.value)") == ["one", "two"]
        assert not started.run("at('model-field').hidden")
        started.run("at('model').value = 'two'; at('model').dispatchEvent(new Event('change'))")
        _draw(started, n=1)
        started.wait(DONE)
        started.run("document.querySelector('.tile button').click()")
        assert started.run("at('command').innerText").startswith("dalle-sample --model two --n 1 ")
        _nothing_wrong(started, server)


PHONE, SCREEN = {"height": 844, "phone": True}, {"height": 860, "phone": False}


@pytest.mark.parametrize(
    ("width", "dark", "kind", "columns"),
    [(390, True, PHONE, (3,)), (320, False, PHONE, (2,)), (1280, False, SCREEN, (5, 6))],
)
def test_it_fits_a_phone_and_a_screen(page, server, shelved, width, dark, kind, columns):
    page.show(width, dark=dark, **kind)
    _open(page, server)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.run(fits)
    if kind is PHONE:  # all that is told of the model
        page.run(
            "at('about').textContent = 'Emoji in seven styles and clip art, 128 px, and more words than a line has'"
        )
        assert page.run(
            fits + " && at('about').scrollWidth <= at('about').clientWidth && at('about').offsetHeight > 30"
        )
    with slowed(shelved, 0.01):
        _draw(page, "a very long caption " * 12 + "without_any_space_" * 8, n=8)
        page.wait("document.querySelectorAll('.tile.done').length >= 1")
        page.wait(
            "at('stop').getBoundingClientRect().bottom <= innerHeight && at('stop').getBoundingClientRect().top >= 0"
        )
        assert page.run(fits)
        page.wait(DONE)
    assert page.run("new Set([...document.querySelectorAll('.tile')].map(tile => tile.offsetLeft)).size") in columns
    cut = "[...document.querySelectorAll('.meta span')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
    assert page.run(cut) == []
    if kind is PHONE:
        assert page.run("getComputedStyle(document.querySelector('.meta i'), '::after').content") == '"#"'
    meets = "(date, cross) => date.right > cross.left && date.left < cross.right && date.bottom > cross.top"
    words = "(range => (range.selectNodeContents(document.querySelector('.entry small')), range.getBoundingClientRect()))(document.createRange())"
    page.wait("document.querySelector('.entry') !== null")
    assert re.match(r"\d+ · \w{3} \d+, \d+:\d\d", page.run("document.querySelector('.entry small').innerText"))
    page.run("document.querySelector('.entry small').textContent = '0'.repeat(50)")  # longer than any locale has it
    assert not page.run(f"({meets})({words}, document.querySelector('.drop-entry').getBoundingClientRect())")
    page.run("document.querySelector('.tile button').click()")
    page.wait("at('one').open")
    box = page.run("at('one').getBoundingClientRect().toJSON()")
    assert page.run(fits) and box["left"] >= 0 and box["right"] <= width and box["bottom"] <= kind["height"]
    assert page.run("getComputedStyle(at('one-image')).imageRendering") == "pixelated"
    small = "[...document.querySelectorAll('button, select, input[type=number], #save')].filter(e => e.offsetParent && !e.matches('.link')"
    small += " && e.getBoundingClientRect().height < 24).map(e => e.id || e.className)"
    assert page.run(small) == []  # what is touched is not smaller than WCAG 2.2 asks for
    colours = page.run("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (max(colours) < 60) if dark else (min(colours) > 200)
    unnamed = "[...document.querySelectorAll('button, input, select, textarea')].filter(e => !(e.ariaLabel || e.labels?.length || e.textContent"
    unnamed += " || e.closest('label'))).map(e => e.outerHTML)"
    assert page.run(unnamed) == []
