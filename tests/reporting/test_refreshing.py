"""A page that loads itself again while its run goes on, in a real headless browser, and on a phone."""

import json
import time
import warnings

import pytest
from PIL import Image

from dalle.reporting.earlier_run import set_aside
from dalle.reporting.page import refreshing
from dalle.reporting.report import write_report
from tests.evaluation.chromium import PROGRAM, Browser

if PROGRAM is None:
    warnings.warn("no Chromium here: the page of a run is not tried in a browser", stacklevel=1)
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium")


def _run(folder, status, steps=6):
    """A folder as a run leaves it after so many updates, with curves, wide pictures, folds, scales and masks."""
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"title": "it", "unit": "tokens", "total_steps": 9, "status": status}))
    lines = [
        {"step": n, "time_s": 60.0 * n, "loss": 1 / n, "text_nats": 2 / n, "mystery": n, "gradient_scales": [n, 13.0]}
        for n in range(1, steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("model: {text_slots: 5, grid: 3, depth: 12, heads: 1, width: 64}\n")
    (folder / "pictures").mkdir(exist_ok=True)
    for step in range(1, steps):
        Image.new("RGB", (600, 200), (40 * step, 80, 120)).save(folder / f"pictures/samples-{step:07d}.png")
    write_report(folder)


def test_only_the_page_of_a_run_that_goes_on_loads_itself_again(tmp_path):
    pages = {}
    for status in ("running", "finished", "stopped", "failed"):
        _run(tmp_path / status, status)
        pages[status] = (tmp_path / status / "report.html").read_text()
    meta = f'<noscript><meta http-equiv="refresh" content="{refreshing.EVERY_S}"></noscript>'
    before_body = pages["running"].partition("<body>")[0]
    assert meta in before_body and "const every = 20 * 1000" in pages["running"] and 'id="age"' in pages["running"]
    for status in ("finished", "stopped", "failed"):
        assert "http-equiv" not in pages[status] and "const every = 0 * 1000" in pages[status]
        assert "the run has ended" in pages[status]
    assert "the run has ended" not in pages["running"]


def test_of_a_run_that_was_killed_the_page_no_longer_waits(tmp_path):
    _run(tmp_path / "it", "running")
    set_aside(tmp_path / "it")
    page = (tmp_path / "it/previous-1/report.html").read_text()
    assert "the run has ended" in page and "cut off" in page and "http-equiv" not in page
    _run(tmp_path / "it", "finished")
    set_aside(tmp_path / "it")
    assert json.loads((tmp_path / "it/previous-2/run.json").read_text())["status"] == "finished"
    _run(tmp_path / "it", "running")
    (tmp_path / "it/run.json").write_text("{")  # which is no reason to stop the new one
    set_aside(tmp_path / "it")


# What a page would do later is kept, for the test to do when it wants: a busy machine may take seconds for anything.
_CLOCK = (
    "const soon = window.setTimeout; window.later = [];"
    " window.setTimeout = (does, ms) => ms < 1000 ? soon(does, ms) : later.push([ms, does]);"
    " const due = ms => later.filter(each => each[0] === ms).length;"
    " const passes = ms => later.splice(later.findIndex(each => each[0] === ms), 1)[0][1]()"
)
_PLACE = (
    "[scrollY, document.querySelector('.row').scrollLeft, document.querySelector('.row.layers').scrollLeft,"
    " document.querySelector('details').open]"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("downloads"))
    started.call("Page.addScriptToEvaluateOnNewDocument", source=_CLOCK)
    yield started
    started.close()


@needs_chromium
def test_the_reader_stays_where_they_are_until_the_run_has_ended(browser, tmp_path):
    browser.show(390, 700, phone=True)
    _run(tmp_path / "it", "running")
    browser.open(f"file://{tmp_path}/it/report.html")
    at_end = browser.run("(r => r.scrollLeft + r.clientWidth >= r.scrollWidth - 4)(document.querySelector('.row'))")
    assert at_end and browser.run("document.querySelector('.row.layers').scrollLeft") == 0
    assert browser.run("/^, \\d+ s ago$/.test(document.getElementById('age').textContent)")
    browser.run("document.querySelector('details').open = true; document.querySelector('.row').scrollLeft = 150")
    browser.run("document.querySelector('.row.layers').scrollLeft = 60; scrollTo(0, 900); window.isOld = true")
    before = browser.run(_PLACE)
    assert before == [900, 150, 60, True] and browser.run("due(20000)") == 1
    browser.run("passes(20000)")
    browser.wait("!window.isOld && document.readyState === 'complete'")
    assert browser.run(_PLACE) == before
    browser.run("document.querySelector('.row').scrollLeft = 1e6; window.isOld = true")
    _run(tmp_path / "it", "finished", steps=9)  # with three more pictures, of which the last is looked for
    browser.run("passes(20000)")
    browser.wait("!window.isOld && document.readyState === 'complete'")
    assert "the run has ended" in browser.run("document.body.innerText")
    y, x, _, is_open = browser.run(_PLACE)
    assert (y, is_open) == (900, True) and x > 2000
    assert browser.run("later.length") == 0


@needs_chromium
def test_what_is_being_marked_is_not_taken_away(browser, tmp_path):
    _run(tmp_path / "it", "running")
    browser.open(f"file://{tmp_path}/it/report.html")
    browser.run("getSelection().selectAllChildren(document.querySelector('h1')); window.isOld = true; passes(20000)")
    assert browser.run("[window.isOld, due(5000)]") == [True, 1]
    browser.run("getSelection().empty(); passes(5000)")
    browser.wait("!window.isOld && document.readyState === 'complete'")


@needs_chromium
def test_the_keyboard_stays_where_it_is_and_the_page_may_be_held(browser, tmp_path):
    _run(tmp_path / "it", "running")
    browser.open(f"file://{tmp_path}/it/report.html")
    browser.run("document.querySelector('summary').focus(); scrollTo(0, 300); window.isOld = true; passes(20000)")
    browser.wait("!window.isOld && document.readyState === 'complete'")
    assert browser.run("document.activeElement === document.querySelector('summary') && scrollY === 300")
    browser.run("document.getElementById('hold').click(); window.isOld = true; passes(20000)")
    assert browser.run("[window.isOld, due(5000), hold.ariaPressed]") == [True, 1, "true"]
    browser.run("location.reload()")  # by hand, it is still held
    browser.wait("!window.isOld && document.readyState === 'complete'")
    assert browser.run("hold.ariaPressed") == "true"
    browser.run("window.isOld = true; document.getElementById('hold').click(); passes(20000)")
    browser.wait("!window.isOld && document.readyState === 'complete'")
    assert browser.run("hold.ariaPressed") == "false"


@needs_chromium
def test_a_run_of_which_nothing_is_heard_is_asked_after(browser, tmp_path, monkeypatch):
    now_s = time.time()
    monkeypatch.setattr("dalle.reporting.report.time.time", lambda: now_s - 3600)
    _run(tmp_path / "it", "running")
    browser.open(f"file://{tmp_path}/it/report.html")
    told = browser.run("document.getElementById('age').textContent")
    assert told.startswith(", 6") and told.endswith(" min ago (is the run still there?)")


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser, tmp_path, width):
    browser.show(width, 800, phone=width < 500)
    _run(tmp_path / "it", "finished")
    browser.events.clear()
    browser.open(f"file://{tmp_path}/it/report.html")
    assert browser.run("document.documentElement.scrollWidth") <= width
    # a picture of the row fits whole
    assert browser.run("document.querySelector('.row img').width <= document.querySelector('.row').clientWidth")
    assert browser.run("[...document.querySelectorAll('.masks img')].every(i => i.complete && i.naturalWidth >= 320)")
    bad = [e for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert not bad
