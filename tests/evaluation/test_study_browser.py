"""The human study's page in a real headless browser, from the first click to scored answers."""

import json
import time
import warnings

import pytest

from dalle.cli.evaluation.study import study
from dalle.config import WorkerChecks
from dalle.evaluation.study.design import read_design
from dalle.evaluation.study.results import score
from tests.evaluation.chromium import PROGRAM, Browser
from tests.evaluation.study_folders import by_model, embedded, write_images

if PROGRAM is None:
    warnings.warn("no Chromium here: the study's page is not tried in a browser", stacklevel=1)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium")

LONG = "a very long caption " * 12 + "without_any_space_" * 8 + " </script> \u05e9\u05dc\u05d5\u05dd"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    captions = [LONG, "one", "two", "three", "four", "five"]
    images = [write_images(folder / name, captions, seed=seed) for seed, name in enumerate(("ours", "theirs"))]
    options = ["--catch_trials", "2", "--repeats", "1"]
    study(["--images", " ".join(images), "--output", str(folder / "study"), *options])
    return folder / "study"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.close()


@pytest.fixture
def browser(started, made):
    """As if it had never seen the page."""
    started.open(f"file://{made}/index.html")
    started.run("localStorage.clear()")
    started.events.clear()
    return started


def _shown(browser):
    """What is on the page: number of the pair, caption, images."""
    return browser.run('[at("count").textContent, at("caption").textContent, at("left").src, at("right").src]')


def _answer(browser, keys, shown, after):
    """By keyboard; then wait for the next pair, or the end."""
    for key in keys:
        browser.press(key)
    browser.press("Enter")
    browser.wait(f'at("count").textContent !== {json.dumps(shown)} || !at("end").hidden')
    assert after is None or browser.run('at("count").textContent') == after


def test_a_worker_answers_reloads_goes_on_and_sends(made, browser):
    design = read_design(made / "study.json")
    address = f"file://{made}/index.html?worker=3&name=Ada"
    mine, careful = design.workers[2], by_model(design, "theirs")
    total, images = len(mine), embedded(made)["images"]
    browser.show(1280, 800)
    browser.open(address)
    assert browser.run('at("number-field").hidden') and browser.run('at("trial").hidden')
    browser.run('at("start").click()')

    def answer(number):
        count, *shown = _shown(browser)
        trial, left = design.trials[mine[number].trial], mine[number].left
        right = next(image for image in trial.images if image != left)
        assert count == f"{number + 1} of {total}" and shown == [trial.caption, images[left], images[right]]
        wanted = careful(mine[number])
        assert browser.run('at("next").disabled')
        realistic = "1" if wanted["realistic"] == left else "2"
        matches = {left: "3", "neither": "4", right: "5"}[wanted["matches"]]
        _answer(browser, (realistic, matches), count, None if number + 1 == total else f"{number + 2} of {total}")

    for number in range(4):
        answer(number)
    browser.wait("since > 0")
    browser.press("2")  # half an answer does not go on
    browser.press("Enter")
    assert browser.run("answers.length") == 4
    time.sleep(0.3)
    goes_on, until = f"You have answered 4 of {total} pairs, and go on where you were.", time.monotonic() + 10
    browser.open(address)
    # Chromium brings what was stored to a new page when it has time
    while browser.run('at("how-many").textContent') != goes_on:
        assert time.monotonic() < until
        browser.open(address)
    assert browser.run('at("start").textContent') == "Go on"
    browser.run('at("start").click()')
    assert browser.run("time()") >= 300  # what was spent on the pair before the reload counts
    for number in range(4, total):
        answer(number)
    browser.wait('!at("end").hidden')
    assert browser.run('at("thanks").textContent') == "Thank you"
    browser.run('at("download").click()')
    file = browser.downloads / f"answers-{design.hash[:8]}-worker-3.json"
    until = time.monotonic() + 30
    while not file.is_file():
        assert time.monotonic() < until, list(browser.downloads.iterdir())
        time.sleep(0.05)
    values = json.loads(file.read_text())
    assert (values["worker"], values["name"], len(values["answers"])) == (3, "Ada", total)
    assert values["answers"][4]["ms"] >= 300
    assert all(0 <= a["realistic_ms"] <= a["matches_ms"] <= a["ms"] for a in values["answers"])
    results = score(made, [file], WorkerChecks(fast_share=2))
    assert results["skipped"] == {} and results["workers"][0]["catch"] == results["workers"][0]["steady"] == 1
    for question in ("realistic", "matches"):
        assert results["comparisons"][0][question]["majority"]["theirs"]["pairs"] == 6
    _nothing_wrong(browser)
    # the finished study stays finished
    browser.open(address)
    browser.run('at("start").click()')
    assert not browser.run('at("end").hidden') and browser.run("answers.length") == total


def _nothing_wrong(browser):
    """No script failed, and nothing but the file itself and its data was asked for."""
    told = [event for event in browser.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not told
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file://", "data:", "blob:")) for url in asked)


@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 800, False), (390, 844, True), (320, 568, True)])
def test_it_fits_the_screen_and_keeps_pixels_sharp(made, browser, width, height, phone):
    design = read_design(made / "study.json")
    longest = next(w for w, shown in enumerate(design.workers, 1) if design.trials[shown[0].trial].caption != LONG)
    browser.show(width, height, dark=phone, phone=phone)
    browser.open(f"file://{made}/index.html?worker=99")
    assert not browser.run('at("number-field").hidden')
    browser.run('at("start").click()')
    assert not browser.run('at("wrong").hidden') and browser.run('at("trial").hidden')
    assert browser.run("document.activeElement.id") == "number"
    browser.run(f'at("number").value = "{longest}"; at("number").dispatchEvent(new Event("input"))')
    assert browser.run('at("how-many").textContent').startswith(f"There are {len(design.workers[0])} pairs.")
    browser.run('at("start").click()')
    fits = "document.documentElement.scrollWidth <= innerWidth"
    browser.wait('at("left").style.width !== ""')
    assert browser.run(fits)
    if height >= 800:  # all of an ordinary pair is seen without scrolling
        assert browser.run('at("next").getBoundingClientRect().bottom <= innerHeight')
    for side in ("left", "right"):
        shown = browser.run(f'at("{side}").getBoundingClientRect().width * devicePixelRatio')
        assert shown / 16 == round(shown / 16) >= 8  # a whole multiple of the 16 pixels
        rendering = f'getComputedStyle(at("{side}")).imageRendering'
        assert browser.run(rendering) == "pixelated"
        browser.run(f'sized({{naturalWidth: 256, style: {{}}, classList: at("{side}").classList}}, 400)')
        assert browser.run(rendering) == "auto"  # many pixels are enlarged as everywhere
        browser.run("fit()")
    for natural, space, wanted in ((64, 400, 384), (64, 80, 64), (100, 140, 140), (256, 400, 400), (512, 300, 300)):
        scaled = f"widthFor([{{naturalWidth: {natural} * devicePixelRatio}}], {space})"
        small = natural * browser.run("devicePixelRatio") <= 160
        assert browser.run(scaled) == (wanted if small else space)
    left, right = (browser.run(f'at("{side}").getBoundingClientRect().toJSON()') for side in ("left", "right"))
    assert left["top"] == right["top"] and left["right"] < right["left"] and right["right"] <= width
    page = browser.run("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (max(page) < 60) if phone else (min(page) > 200)
    browser.run('at("right").parentNode.click()')
    browser.wait('at("large").open')
    large = browser.run('at("large").getBoundingClientRect().toJSON()')
    assert browser.run('at("large").querySelector("img").src === at("right").src')
    assert large["left"] >= 0 and large["right"] <= width and large["bottom"] <= height
    assert large["width"] > right["width"]
    browser.press("1")  # keys are the dialog's
    assert browser.run('chosen("realistic")') == ""
    browser.press("Escape")
    browser.wait('!at("large").open')
    # through all pairs by touch, the long caption among them
    for _ in design.workers[0]:
        browser.run('document.querySelector("input[name=realistic][value=right]").click()')
        browser.run('document.querySelector("input[name=matches][value=neither]").click()')
        assert browser.run(fits)
        browser.run('at("next").click()')
    assert not browser.run('at("end").hidden') and browser.run(fits)
    assert {answer["matches"] for answer in browser.run("answers")} == {"neither"}
    assert all(a["realistic"] != a["left"] for a in browser.run("answers"))
    _nothing_wrong(browser)


def test_without_local_storage_it_says_so_and_goes_on(made, browser):
    refuse = "Storage.prototype.setItem = () => { throw 1; };"
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=refuse)
    browser.open(f"file://{made}/index.html?worker=1")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **script)
    browser.run('at("start").click()')
    browser.wait('at("left").style.width !== ""')
    assert not browser.run('at("not-kept").hidden')
    count = _shown(browser)[0]
    _answer(browser, ("1", "3"), count, None)
    assert browser.run("answers.length") == 1
    browser.run('at("stop").click()')
    assert not browser.run('at("so-far").hidden')
    assert json.loads(browser.run('at("text").value'))["answers"] == browser.run("answers")
    browser.run('at("back").click()')
    assert browser.run('at("end").hidden') and not browser.run('at("trial").hidden')
