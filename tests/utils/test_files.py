"""A file holds its old content or all of the new, whatever happens in between."""

import errno

import pytest

from et.utils.errors import UserError, is_user_error, unwrapped
from et.utils.files import replacing, write_atomically


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


FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError("1000 requested and 512 written"),  # numpy
    RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"),
)


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path, error):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*result\.json: .*(full|read-only)"), replacing(path) as fresh:
        fresh.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    # What is written otherwise, such as pictures, is told of where errors are printed.
    assert is_user_error(error) and "cannot write" in str(unwrapped(error))


def test_other_errors_stay_what_they_are():
    for error in (OSError(errno.ENOENT, "No such file"), RuntimeError("a bug")):
        assert unwrapped(error) is error and not is_user_error(error)
