"""Figures of what was found, and which images the page shows."""

from __future__ import annotations

from typing import Any

from dalle.data.sources.ledger import Ledger

SIDES_PX = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Borders of the histogram of shorter sides."""
RATIOS = (0.5, 0.75, 0.95, 1.05, 4 / 3, 2)
"""Borders of the histogram of width over height."""
WORDS = (2, 4, 8, 16, 32, 64)
"""Borders of the histogram of captions' words."""
_KEPT_SHOWN = 24
_OF_A_REASON = 6
_REASONS_SHOWN = 8
_CAPTIONS_SHOWN = 12


def inspect(ledger: Ledger) -> dict[str, Any]:
    """Figures by name. Sizes and captions are of the images that are kept; images that are left out are counted elsewhere."""
    ask = ledger.ask
    valid, kept = ask("SELECT SUM(valid), COUNT(*) FROM images WHERE kind IS NULL")[0]
    texts = (
        "SELECT i.first AS image, c.text AS text, MIN(c.words) AS words, MIN(c.chars) AS chars FROM captions c JOIN images i "
        "ON c.image = i.number WHERE c.reason IS NULL AND i.first IN (SELECT number FROM images WHERE kind IS NULL) "
        "GROUP BY i.first, c.text"
    )
    # none that SQLite would keep in the system's folder for temporary files
    ask(f"CREATE TABLE texts AS {texts}")
    captions, longest = ask("SELECT COUNT(*), MAX(chars) FROM texts")[0]
    side, ratio = "MIN(width, height)", "(1.0 * width / height)"
    return {
        "num_train": kept - valid,
        "num_valid": valid,
        "images_read": ask("SELECT COUNT(*) FROM images WHERE path IS NOT NULL OR pixels IS NOT NULL")[0][0],
        "captions": captions,
        "captions_per_image": captions / kept,
        "caption_tokens_max_chars": longest,
        "caption_words_median": _median(ledger, "texts", "words"),
        "caption_chars_median": _median(ledger, "texts", "chars"),
        "side_px_median": int(_median(ledger, "images WHERE kind IS NULL", side)),
        "side_px_least": ask(f"SELECT MIN({side}) FROM images WHERE kind IS NULL")[0][0],
        "equal_images": ask("SELECT COUNT(*) FROM images WHERE first < number")[0][0],
        "captions_of_several_images": ask(
            "SELECT COUNT(*) FROM (SELECT text FROM texts GROUP BY text HAVING COUNT(*) > 1)"
        )[0][0],
        "sides_px": _histogram(ledger, "images WHERE kind IS NULL", side, SIDES_PX),
        "ratios": _histogram(ledger, "images WHERE kind IS NULL", ratio, RATIOS),
        "words": _histogram(ledger, "texts", "words", WORDS),
        "captions_an_image": {
            str(number): count
            for number, count in ask(
                "SELECT captions, COUNT(*) FROM (SELECT MIN(COUNT(*), 10) AS captions FROM texts GROUP BY image) "
                "GROUP BY captions ORDER BY captions"
            )
        },
    }


def _median(ledger: Ledger, of: str, value: str) -> float:
    (count,) = ledger.ask(f"SELECT COUNT(*) FROM {of}")[0]
    middle = ledger.ask(
        f"SELECT {value} AS value FROM {of} ORDER BY value LIMIT ? OFFSET ?", 2 - count % 2, (count - 1) // 2
    )
    return sum(v for (v,) in middle) / len(middle)


def _histogram(ledger: Ledger, of: str, value: str, borders: tuple[float, ...]) -> list[int]:
    """How many lie below the first border, from each up to the next, and from the last on."""
    cases = " ".join(f"WHEN {value} < {border} THEN {number}" for number, border in enumerate(borders))
    found = dict(ledger.ask(f"SELECT CASE {cases} ELSE {len(borders)} END AS bin, COUNT(*) FROM {of} GROUP BY bin"))
    return [found.get(number, 0) for number in range(len(borders) + 1)]


def examples(ledger: Ledger) -> list[int]:
    """Numbers of the images on the page: some that are kept, spread over all, and the first that were left out for each
    reason, of those that decode."""
    (kept,) = ledger.ask("SELECT COUNT(*) FROM images WHERE kind IS NULL")[0]
    step = max(1, kept / _KEPT_SHOWN)
    shown = [
        ledger.ask("SELECT number FROM images WHERE kind IS NULL ORDER BY number LIMIT 1 OFFSET ?", int(i * step))[0][0]
        for i in range(min(kept, _KEPT_SHOWN))
    ]
    reasons = ledger.ask(
        "SELECT reason FROM images WHERE kind IS NOT NULL AND pixels IS NOT NULL GROUP BY reason ORDER BY COUNT(*) DESC, "
        "reason LIMIT ?",
        _REASONS_SHOWN,
    )
    for (reason,) in reasons:
        query = "SELECT number FROM images WHERE reason = ? AND pixels IS NOT NULL ORDER BY number LIMIT ?"
        shown += [number for (number,) in ledger.ask(query, reason, _OF_A_REASON)]
    return shown


def captions_left_out(ledger: Ledger) -> dict[str, list[str]]:
    """The first captions that each filter left out, of images that decode."""
    reasons = ledger.ask(
        "SELECT c.reason FROM captions c JOIN images i ON c.image = i.number WHERE c.reason IS NOT NULL AND i.pixels IS NOT "
        "NULL GROUP BY c.reason ORDER BY COUNT(*) DESC, c.reason"
    )
    query = (
        "SELECT c.text FROM captions c JOIN images i ON c.image = i.number WHERE c.reason = ? AND i.pixels IS NOT NULL "
        "ORDER BY i.number, c.place, c.rowid LIMIT ?"
    )
    return {reason: [text for (text,) in ledger.ask(query, reason, _CAPTIONS_SHOWN)] for (reason,) in reasons}
