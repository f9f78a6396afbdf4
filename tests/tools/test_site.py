"""The documentation site: built with warnings as errors, and looked at as a phone shows it."""

import importlib
import os
import re
import subprocess
import sys

import pytest

from dalle.config import Sampling
from dalle.config.programs import PROGRAMS
from tests.conftest import ROOT
from tests.evaluation.chromium import PROGRAM, Browser

try:
    import griffe  # noqa: F401
    import material  # noqa: F401
    import mkdocs.commands.build
    from mkdocs.config import load_config
except ImportError:
    pytest.skip("NOT BUILT: the documentation site; pip install 'dalle[docs]'", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def _beside_the_hooks():
    """mkdocs imports them from their own folder."""
    sys.path.insert(0, str(ROOT / "tools/documentation"))
    yield
    sys.path.remove(str(ROOT / "tools/documentation"))


def _made(name):
    return importlib.import_module(name)


def _changes():
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("site") / "built", _changes()
    environment = os.environ | {
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = ["bash", str(ROOT / "tools/docs.sh"), "--site-dir", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr and "mkdocs build --strict " in _text(ROOT / "tools/docs.sh")
    assert _changes() == before, "building leaves something in git"
    return folder


def _text(page):
    return page.read_text(encoding="utf-8")


def test_every_page_is_there(site):
    """That each stands in the navigation, building sees to: see below."""
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page
    assert "10 of 16 differ" in _text(site / "notebook.html")
    assert (site / "notebook-3-1.png").read_bytes().startswith(b"\x89PNG")
    assert 'href="notebook.html"' in _text(site / "tutorial.html")


def test_the_reference_is_made_from_the_docstrings(site):
    face = _text(site / "reference/python/index.html")
    for name in ("dalle.sampling.loading.load", "dalle.sampling.pipeline.Pipeline.generate"):
        assert f'id="{name}"' in face
    assert "candidate i has seed" in face  # of the docstring of `generate`
    models = _text(site / "reference/python/models.html")
    assert 'id="dalle.models.dvae.DVAE"' in models and 'id="dalle.models.prior.Prior.forward"' in models
    everything = [*site.glob("reference/**/*.html")]
    assert len(everything) > 15
    for page in everything:
        assert not re.search(r"(?m)^(<p>)?::: ", _text(page)), f"{page}: a directive that nobody read"


def test_lists_after_a_line_of_text_are_lists(site):
    """As on GitHub: Python-Markdown by itself has them in the paragraph."""
    page = _text(site / "captioning.html")
    assert re.search(r"<li>\s*(<p>)?<code>rank_by: image</code>", page)


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium")
def test_no_page_is_wider_than_the_screen(site, tmp_path):
    browser = Browser(tmp_path)
    try:
        for width, names in (
            (390, ("index", "notebook", "scaling", "reference/python/objectives")),
            (1280, ("scaling",)),
        ):
            browser.show(width, 844, phone=width == 390)
            for name in names:
                browser.open(f"file://{site}/{name}.html")
                assert browser.run("document.documentElement.scrollWidth") <= width, f"{name} at {width}"
                broken = (
                    "[...document.images].filter(each => each.complete && !each.naturalWidth).map(each => each.src)"
                )
                assert browser.run(broken) == []
    finally:
        browser.close()


@pytest.mark.parametrize(
    ("files", "works"),
    [
        ({"index.md": "# A\n\n[b](b.md#that-is-there)", "b.md": "# B\n\n## That is there"}, True),
        ({"index.md": "# A\n\n[b](c.md)", "b.md": "# B"}, False),
        ({"index.md": "# A\n\n[b](b.md#that-is-not-there)", "b.md": "# B\n\n## That is there"}, False),
        ({"index.md": "# A\n\n[b](b.md)", "b.md": "# B", "c.md": "# In no navigation"}, False),
    ],
)
def test_a_warning_ends_it(tmp_path, files, works):
    """With the very settings of the site, on pages of which one has something wrong."""
    (tmp_path / "docs").mkdir()
    for name, text in files.items():
        (tmp_path / "docs" / name).write_text(text)
    places = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site"), "hooks": [], "plugins": []}
    nav = [{"Start": ["index.md", "b.md"]}]
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, nav=nav, extra_css=[], **places)
    if works:
        mkdocs.commands.build.build(config)
    else:
        with pytest.raises(mkdocs.exceptions.Abort):
            mkdocs.commands.build.build(config)


def test_commands_and_settings_are_whole():
    made = _made("settings_pages")
    commands, settings = made.commands_page(), made.settings_page()
    for name, program in PROGRAMS.items():
        part = commands.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert f"```bash\n{program.example}\n```" in part
        for field in program.config.__dataclass_fields__:
            assert f"- **`{field}`** (" in part, f"{name} {field}"
    sample = commands.split("\n## dalle-sample\n")[1].split("\n## ")[0]
    assert "- **`n`** (a whole number; `32` unless given): candidates of each caption" in sample
    assert (
        "- **`sampling`** (settings of [Sampling](settings.md#sampling)): how candidates are drawn: temperature"
        in sample
    )
    assert "Without its name may be given: `caption`." in sample
    prior = commands.split("\n## dalle-train-prior\n")[1].split("\n## ")[0]
    assert "- **`data`** (text; has to be given): " in prior
    drawn = settings.split("\n## Sampling\n")[1].split("\n## ")[0]
    assert all(f"- **`{field}`** (" in drawn for field in Sampling.__dataclass_fields__)
    assert "[dalle-sample](commands.md#dalle-sample)" in drawn
    assert "\n## Compression\n" in settings  # a section of a section, which may be null


def test_several_names_before_one_meaning_are_an_entry_for_each():
    spelt_out = _made("docstrings").spelt_out
    text = "Draws.\n\nArgs:\n    dvae, prior: single models\n        of a kind\n    clip: another\n"
    assert spelt_out(text).splitlines() == [
        *("Draws.", "", "Args:", "    dvae: single models", "        of a kind"),
        *("    prior: single models", "        of a kind", "    clip: another"),
    ]


def test_markdown_is_read_as_on_github():
    as_there = _made("hooks").on_page_markdown
    assert as_there("text\n- a\n- b\n  more\n- c") == "text\n\n- a\n- b\n  more\n- c"
    assert as_there("text\n1. a\n2. b") == "text\n\n1. a\n2. b"
    assert as_there("```\ntext\n- a\n```\n\n- b") == "```\ntext\n- a\n```\n\n- b"
    assert as_there("[it](notebook.ipynb)") == "[it](notebook.md)"
