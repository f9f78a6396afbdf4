"""Lists of images to leave out: written and read, matched, and refused where they are something else."""

import pytest

from dalle.evaluation.overlap.exclusions import (
    exclusion_name,
    is_excluded,
    read_exclusions,
    unmatched,
    write_exclusions,
)


def test_what_is_written_is_read_and_matches_wherever_the_shards_lie(tmp_path):
    images = [("/a/valid-000.tar", "0001"), ("/a/valid-000.tar", "x/0002 (2)"), ("hf://a/b.tar", "0001")]
    names = [exclusion_name(*image) for image in images]
    assert names == ["valid-000.tar/0001", "valid-000.tar/x/0002 (2)", "b.tar/0001"]
    write_exclusions(tmp_path / "exclude.txt", names, ["how it was\nmade", "and of what"])
    text = (tmp_path / "exclude.txt").read_text()
    assert text.startswith("# how it was made\n# and of what\nvalid-000.tar/0001\n")
    read = read_exclusions(tmp_path / "exclude.txt")
    assert read == set(names)
    assert all(is_excluded(read, shard.replace("/a/", "/elsewhere/"), key) for shard, key in images)
    assert not is_excluded(read, "other.tar", "0001") and not is_excluded(read, "valid-000.tar", "0002")


def test_a_key_alone_is_enough(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeff# mine\r\n\r\n0007\r\n#\r\n#8\r\n".encode())
    read = read_exclusions(tmp_path / "list.txt")
    assert read == {"0007", "#8"}
    assert is_excluded(read, "any.tar", "0007") and is_excluded(read, "any.tar", "#8")
    assert not is_excluded(read, "0007", "x")


def test_names_that_match_nothing_are_counted():
    names = {"a.tar/1", "2", "b.tar/3", "9"}
    assert unmatched(names, [("/x/a.tar", "1"), ("c.tar", "2"), ("c.tar", "3")]) == ["9", "b.tar/3"]
    assert unmatched(names, []) == sorted(names) and unmatched(set(), [("a", "b")]) == []


@pytest.mark.parametrize("key", ["a\nb", "tail ", " head", "bell\a", "half \udcff", "a\u2028b", "back\\slash"])
def test_keys_of_any_kind_keep_their_line(tmp_path, key):
    write_exclusions(tmp_path / "list.txt", [exclusion_name("s.tar", key)], [])
    read = read_exclusions(tmp_path / "list.txt")
    assert len(read) == 1 and is_excluded(read, "s.tar", key) and not is_excluded(read, "s.tar", key + "x")


def test_an_empty_list_leaves_nothing_out(tmp_path):
    write_exclusions(tmp_path / "list.txt", [], ["nothing is near"])
    assert read_exclusions(tmp_path / "list.txt") == set()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8 text"),
        (b'# fine\n{"cosine": 0.9, "excluded": true}\n', "line 2: .* is JSON"),
        (b"a.tar/1 \n", "line 1: .* begins or ends with a space"),
        (b"a.tar\t1\n", "line 1: .* no text"),
        (b"a\0b\n", "no text"),
        (b"ok\na.tar/\n", "line 2: .* no key"),
        (b"/1\n", "no shard"),
        (b"x" * 5000, "has 5,000 characters"),
    ],
)
def test_what_is_no_list_is_refused_in_one_line(tmp_path, content, words):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read_exclusions(tmp_path / "list.txt")
    assert "\n" not in str(error.value) and "list.txt" in str(error.value) and len(str(error.value)) < 400


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_exclusions(tmp_path / "none.txt")
