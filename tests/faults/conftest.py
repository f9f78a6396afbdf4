"""The quick part is run with all tests; the long one, which tries every case and not some, by its marker."""

import pytest

from tests.faults.frame import counts


def pytest_collection_modifyitems(config, items) -> None:
    """Tests marked `faults` are run where they are asked for."""
    if "faults" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="long; run by -m faults"))


def pytest_terminal_summary(terminalreporter) -> None:
    """The table that docs/trust.md quotes."""
    for line in counts.table():
        terminalreporter.write_line(line)
