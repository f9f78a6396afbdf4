"""What a run says of its samples: once for each piece of news, at the end, in the report."""

from dalle.data.counts import Broken, Counts, Filtered
from dalle.reporting.report import write_report
from dalle.reporting.samples import SamplesLog


def _counts(good: int, **broken: int) -> Counts:
    counts = Counts(read=good)
    for reason, count in broken.items():
        for i in range(count):
            kind = Filtered if reason == "wide" else Broken
            counts.add({"__key__": f"{i}", "__url__": "<x>.tar"}, kind(reason))
    return counts


def test_news_is_a_new_reason_or_twice_as_many(tmp_path):
    said: list[str] = []
    log = SamplesLog(tmp_path, said.append)
    for counts, news in (
        (_counts(10), 0),
        (_counts(20, bad=1), 1),
        (_counts(30, bad=1), 0),
        (_counts(40, bad=2), 1),
        (_counts(50, bad=3), 0),
        (_counts(50, bad=3, wide=1), 1),
        (_counts(60, bad=3, wide=1), 0),
        (_counts(60, bad=5, wide=2), 1),
    ):
        before = len(said)
        log.take({"data": counts})
        assert len(said) - before == news, counts
    log.take({"data": _counts(60, bad=5, wide=2), "valid_data": _counts(3, bad=1)})
    assert said[-1].startswith("valid_data: of 4 samples 3 were used, 0 filtered out, 1 broken (1 × bad: 0 of <x>.tar)")


def test_the_report_has_them(tmp_path):
    log = SamplesLog(tmp_path, lambda line: None)
    log.take({"data": _counts(8, bad=2)})
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Samples</h2><p>data: of 10 samples 8 were used" in page and "0, 1 of &lt;x&gt;.tar" in page
    assert log.lines() == ["data: of 10 samples 8 were used, 0 filtered out, 2 broken (2 × bad: 0, 1 of <x>.tar)"]


def test_the_report_does_without_them(tmp_path):
    for text in ("", "{", "[]", '{"data": {}}', '{"data": 3}', "{}"):
        (tmp_path / "samples.json").write_text(text)
        write_report(tmp_path)
        assert "Samples" not in (tmp_path / "report.html").read_text()


def test_other_ranks_say_and_write_nothing(tmp_path):
    said: list[str] = []
    log = SamplesLog(tmp_path / "none", said.append, is_main=False)
    log.take({"data": _counts(1, bad=1)})
    assert not said and not log.lines() and not list(tmp_path.iterdir())
