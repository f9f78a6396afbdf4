"""The page that workers answer on: one file with all it needs in it, which asks nothing of the network.

It holds the images by ids that say nothing, in the order of the ids, and neither a model's name nor the right answers of
the catch trials. Progress stays in the browser's local storage, by the study and the worker's number.
"""

from __future__ import annotations

import json
from importlib import resources

from dalle.evaluation.study.design import Design
from dalle.outputs.page_head import head

_TITLE = "Which image is better?"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_BODY = """
<noscript><p class="text wrong">This page needs JavaScript.</p></noscript>
<form class="text" id="intro" novalidate>
<h1>Which image is better?</h1>
<p>You will see a caption and two images. For each pair there are two questions:</p>
<ol><li><b>Which image is more realistic?</b> Judge the image alone, whatever the caption says.</li>
<li><b>Which image matches the caption better?</b> If neither of them shows what the caption says, answer
<i>neither</i>.</li></ol>
<p>Some pairs come twice, and some are easy on purpose. Click or tap an image to see it larger.</p>
<label class="field" id="number-field">Your number, from 1 to <span id="of"></span>
<input id="number" type="number" inputmode="numeric" min="1" step="1" autocomplete="off"></label>
<p class="wrong" id="wrong" role="alert" hidden>There is no such number. Type the one that you were given.</p>
<label class="field">Your name or worker ID, if you were asked for it
<input id="name" maxlength="100" autocomplete="off"></label>
<p class="soft" id="how-many"></p>
<button class="main" id="start">Start</button>
</form>
<main id="trial" hidden>
<div class="top"><span id="count"></span><progress id="progress" aria-label="Pairs that you have answered"></progress>
<button class="quiet" id="stop" type="button">Stop and save</button></div>
<p class="soft wrong" id="not-kept" hidden>This browser keeps nothing: do not close or reload the page before the end.</p>
<h1 class="caption" id="heading" tabindex="-1"><span>Caption</span><bdi id="caption"></bdi></h1>
<div class="pair">
<figure><button type="button"><img id="left" alt="Left image"></button><figcaption>Left</figcaption></figure>
<figure><button type="button"><img id="right" alt="Right image"></button><figcaption>Right</figcaption></figure>
</div>
<form id="answers"><div class="questions">
<fieldset><legend>Which is more realistic?</legend><div class="choices">REALISTIC</div></fieldset>
<fieldset><legend>Which matches the caption better?</legend><div class="choices">MATCHES</div></fieldset>
</div><div class="go"><button class="main" id="next">Next <kbd>Enter</kbd></button></div></form>
<dialog id="large"><img alt=""></dialog>
</main>
<section class="text" id="end" hidden>
<h1 id="thanks" tabindex="-1"></h1>
<p>You have answered <b id="done"></b> pairs. Download the file and send it to whoever asked you.</p>
<p id="so-far">Your answers stay in this browser too: open the page again to go on.</p>
<p><button class="main" id="download" type="button">Download answers</button></p>
<p class="saved" id="saved" role="status" hidden></p>
<p><button class="quiet" id="back" type="button">Back to the pairs</button></p>
<details><summary>If the download does not work, copy this text</summary>
<textarea id="text" readonly aria-label="Answers"></textarea></details>
</section>
"""


def write_page(design: Design, images: dict[str, str]) -> str:
    """The page as text.

    Args:
        design: of the study
        images: data URLs by the pictures' ids
    """
    contents = {
        "study": design.hash,
        "trials": {name: [trial.caption, *trial.images] for name, trial in sorted(design.trials.items())},
        "workers": [
            [[shown.trial, int(shown.left != design.trials[shown.trial].images[0])] for shown in worker]
            for worker in design.workers
        ],
        "images": dict(sorted(images.items())),
    }
    # a caption is anyone's text: it may not end the element that it stands in
    embedded = json.dumps(contents, separators=(",", ":")).replace("<", "\\u003c")
    body = _BODY.replace("REALISTIC", _choices("realistic", {"left": "Left", "right": "Right"}, 1))
    body = body.replace("MATCHES", _choices("matches", {"left": "Left", "neither": "Neither", "right": "Right"}, 3))
    start = head(_TITLE, _source("page.css"))
    start = start.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{_POLICY}">', 1)
    return (
        f'{start}{body}<script type="application/json" id="study">{embedded}</script>\n'
        f"<script>\n{_source('page.js')}</script></body></html>\n"
    )


def _choices(question: str, sides: dict[str, str], first_key: int) -> str:
    return "".join(
        f'<label class="choice"><input type="radio" name="{question}" value="{side}">'
        f"<span>{shown}<kbd>{key}</kbd></span></label>"
        for key, (side, shown) in enumerate(sides.items(), first_key)
    )


def _source(name: str) -> str:
    return resources.files("dalle.evaluation.study").joinpath(name).read_text(encoding="utf-8")
