"""What the program says when it refuses, as `docs/errors.md`.

tools/errors.py            writes it
tools/errors.py --check    ends with 1 where it is another one, or a message does not say what to do
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from messages.page import lacking, own_words, page
from messages.places import ROOT, all_places

PAGE = ROOT / "docs/errors.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--left", nargs="+", type=Path, metavar="FILE", help="of a run of tests; what they did not raise is listed"
    )
    arguments = parser.parse_args()
    check, found = arguments.check, all_places()
    if arguments.left:
        raised = {name for file in arguments.left for name in file.read_text(encoding="utf-8").splitlines()}
        sys.exit("\n".join(place.name for place in found if place.name not in raised and own_words(place)) or None)
    wrong = [f"{each}: says not what to do" for each in lacking(found)]
    text = page(found)
    if check and (not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text):
        wrong.append(f"{PAGE}: is another one; write it with tools/errors.py")
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    print("\n".join(wrong) or f"{PAGE}: {len(found)} places", file=sys.stderr if wrong else sys.stdout)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
