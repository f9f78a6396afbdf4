"""Files of JSON and YAML that say something else: refused by name, or read as what they say. What once was not is in `corpus`."""

import json
import shutil

import pytest

from tests.faults.damage import outcome
from tests.faults.frame import counts
from tests.faults.kinds import KINDS, Kind
from tests.faults.structure import CORPUS, STRUCTURED, fuzz_structure


@pytest.mark.parametrize("name", STRUCTURED)
def test_other_structure_is_refused_by_name(tmp_path, name):
    fuzz_structure(tmp_path, name, KINDS[name], 16, 0)


@pytest.mark.faults
@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("name", STRUCTURED)
def test_much_other_structure_is_refused_by_name(tmp_path, name, number, capsys):
    with counts.counted("other structure", name, capsys) as outcomes:
        outcomes += fuzz_structure(tmp_path, name, KINDS[name], counts.DAMAGED, number)


FOUND = sorted(path.relative_to(CORPUS) for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("found", FOUND, ids=str)
def test_what_was_found_stays_mended(tmp_path, found):
    name, sound, damaged = str(found.parent), tmp_path / "sound", tmp_path / "damaged"
    sound.mkdir()
    KINDS[name].make(sound)
    shutil.copytree(sound, damaged)
    shutil.copy(CORPUS / found, damaged / name)
    outcome(KINDS[name], name, damaged, KINDS[name].read(sound))


def test_a_finding_is_of_a_kind_that_there_is():
    assert FOUND and {str(found.parent) for found in FOUND} <= {*STRUCTURED}


def test_what_ends_otherwise_is_found(tmp_path):
    """Or the tests above could not fail: a reader that takes what it finds for granted."""

    def made(folder):
        (folder / "it.json").write_text('{"size": 3, "names": ["a", "b"]}')
        return folder / "it.json"

    def read(folder):
        try:
            values = json.loads((folder / "it.json").read_text())
        except (ValueError, RecursionError):
            raise ValueError(f"{folder} is damaged; make it again") from None
        return values["size"], len(values["names"])

    with pytest.raises((KeyError, TypeError)):
        fuzz_structure(tmp_path, "it.json", Kind(made, read), 100, 0)
