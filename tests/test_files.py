"""A file holds its old content or all of the new, whatever happens in between."""

import pytest

from et.files import replacing, write_atomically


def test_the_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "numbers.npy"
    for text in ("old", "new"):
        with replacing(path) as fresh:
            assert fresh.parent == tmp_path and fresh.suffix == ".npy" and fresh != path
            fresh.write_text(text)
        assert path.read_text() == text
    write_atomically(path, "newest")
    assert path.read_text() == "newest" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as fresh:
        fresh.write_text("half of it")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
