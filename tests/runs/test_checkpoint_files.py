"""Checkpoints with digests: no kill loses one, and nothing damaged, incomplete or foreign is read."""

import hashlib

import pytest
import torch

from et.runs import checkpoint_files
from et.runs.checkpoint_files import digest_file, load_best, load_checkpoint, put_in_place, rotate
from et.utils.errors import UserError


def write(path, number, **extra):
    content = {"state_dict": {"w": torch.full((500,), float(number))}, "epoch": number, "global_step": 10 * number}
    torch.save({**content, **extra}, path)
    return path


def save(folder, number):
    """What a run does at the end of an epoch."""
    fresh = write(folder / "fresh.ckpt", number)
    if (folder / "last.ckpt").exists():
        rotate(folder / "last.ckpt", folder / "previous.ckpt")
    put_in_place(fresh, folder / "last.ckpt")


def readable(folder):
    """Epochs of the checkpoints that verify, newest first; those that do not must not be there."""
    paths = [folder / name for name in ("last.ckpt", "previous.ckpt") if (folder / name).exists()]
    return [load_checkpoint(path)["epoch"] for path in paths]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("with_digests", (True, False), ids=("digests", "an older version's folder"))
def test_a_kill_between_any_two_writes_loses_no_checkpoint(tmp_path, monkeypatch, with_digests):
    """Killed before and after each step of a save, the folder has the checkpoint of before or the new one, verified."""
    for moment in range(20):
        folder = tmp_path / str(moment)
        folder.mkdir()
        save(folder, 1)
        save(folder, 2)
        if not with_digests:
            for file in folder.glob("*.sha256"):
                file.unlink()
        steps = 0

        def counted(function, moment=moment):
            def call(*arguments):
                nonlocal steps
                steps += 1
                if steps > moment:
                    raise Killed
                return function(*arguments)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(checkpoint_files.os, "replace", counted(checkpoint_files.os.replace))
            try:
                save(folder, 3)
                whole = True
            except Killed:
                whole = False
        newest = readable(folder)
        assert newest and newest[0] in (2, 3), moment
        save(folder, 4)
        assert readable(folder)[0] == 4
        if whole:
            assert newest == [3, 2] and moment > 3
            return
    raise AssertionError("a save never came to its end")


def test_a_digest_is_what_sha256sum_writes(tmp_path):
    save(tmp_path, 1)
    digest = hashlib.sha256((tmp_path / "last.ckpt").read_bytes()).hexdigest()
    assert digest_file(tmp_path / "last.ckpt").read_text() == f"{digest}  last.ckpt\n"


@pytest.mark.parametrize("with_digest", (True, False), ids=("digest", "checksums of torch.save"))
def test_no_flipped_bit_goes_unnoticed(tmp_path, with_digest):
    save(tmp_path, 1)
    path = tmp_path / "last.ckpt"
    whole, expected = path.read_bytes(), load_checkpoint(path)
    if not with_digest:
        digest_file(path).unlink()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except UserError:
            continue
        assert not with_digest and torch.equal(found["state_dict"]["w"], expected["state_dict"]["w"]), place
        assert found["epoch"] == 1


def test_what_is_missing_cut_short_or_foreign_is_told(tmp_path):
    path = tmp_path / "best.ckpt"
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_best(tmp_path, "mine", 1)
    put_in_place(write(tmp_path / "new", 1, run_id="mine"), path)
    assert load_best(tmp_path, "mine", 1, 10)["epoch"] == 1
    with pytest.raises(UserError, match=r"belongs to another configuration \(run mine\)"):
        load_best(tmp_path, "other", 1)
    with pytest.raises(UserError, match="is of epoch 1, but the best epoch is 2"):
        load_best(tmp_path, "mine", 2)
    with pytest.raises(UserError, match="is of step 10, but the best one is at 30"):
        load_best(tmp_path, "mine", 1, 30)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"SHA-256 is not the one in best\.ckpt\.sha256"):
        load_best(tmp_path, "mine", 1)
    digest_file(path).unlink()
    with pytest.raises(UserError, match="does not load"):
        load_best(tmp_path, "mine", 1)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a complete checkpoint, it lacks epoch, global_step"):
        load_best(tmp_path, "mine", 1)
    for wrong in ({"state_dict": [1]}, {"epoch": "one"}, {"state_dict": {1: torch.zeros(2)}}):
        torch.save({"state_dict": {}, "epoch": 1, "global_step": 1, **wrong}, path)
        with pytest.raises(UserError, match="no checkpoint has such"):
            load_best(tmp_path, "mine", 1)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="it lacks state_dict"):
        load_checkpoint(path)
