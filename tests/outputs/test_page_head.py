"""The head that all pages share."""

import re

from dalle.outputs.page_head import head


def test_a_head_is_whole_escapes_its_title_and_asks_nothing_of_the_network():
    text = head('</title><script>x</script> & "more"', ".own { color: red; }")
    assert text.startswith('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">') and text.endswith(
        "</head><body>"
    )
    assert "<script" not in text and "&lt;script&gt;" in text and "&amp;" in text
    assert re.search(r"<style>.*\.own \{ color: red; \}</style>", text, re.DOTALL)
    assert not re.search(r"(src|href)=|url\(|@import|https?:", text)
    assert 'name="viewport" content="width=device-width' in text and "prefers-color-scheme: dark" in text


def test_each_colour_that_is_named_is_there_by_day_and_by_night():
    text = head("x", "")
    by_day, by_night = (set(re.findall(r"(--\w+):", part)) for part in text.split("@media")[:2])
    assert set(re.findall(r"var\((--\w+)\)", text)) <= by_day == by_night
