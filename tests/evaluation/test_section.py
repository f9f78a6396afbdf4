"""The parts that reports are made of."""

from dalle.evaluation.report.section import table


def test_a_table_without_a_header_is_told_in_words():
    assert "<thead>" not in (told := table(["", ""], [["features", "a <b>"]]))
    assert 'class="words"' in told and "<td>a &lt;b&gt;</td>" in told
    shown = table(["", "share"], [["samples", 0.123456]])
    assert "<th>share</th>" in shown and "<td>0.1235</td>" in shown and "words" not in shown
