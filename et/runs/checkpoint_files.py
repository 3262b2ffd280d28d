"""Checkpoint files with a digest beside each: written so that a kill loses nothing, verified whenever they are read.

Beside ``last.ckpt`` lies ``last.ckpt.sha256``, a line as ``sha256sum`` writes it. The digest of a new checkpoint is
noted before the checkpoint takes its place, next to that of the file it replaces. Whichever of the two a kill leaves
there is then known, and ``sha256sum --check`` agrees once the older line is gone.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from et.utils.errors import UserError
from et.utils.files import write_atomically

RESUME_KEYS: Mapping[str, type] = {
    "epoch": int, "global_step": int, "state_dict": dict, "optimizer_states": list, "lr_schedulers": list,
    "loops": dict, "callbacks": dict,
}  # fmt: skip
KEPT_BY = "Checkpoints"  # Lightning's name for the state of et.training.callbacks.Checkpoints


def digest_file(path: Path) -> Path:
    """Path of a checkpoint's digest file."""
    return path.with_name(f"{path.name}.sha256")


def put_in_place(fresh: Path, path: Path) -> None:
    """Move the complete checkpoint ``fresh`` to ``path`` with its digest."""
    digest = _sha256(fresh)
    _note(path, [digest, *(_noted(path) or [])])
    os.replace(fresh, path)
    _note(path, [digest])


def rotate(path: Path, older: Path) -> None:
    """Let ``path`` take the place of ``older``, digest included."""
    ours = _noted(path)
    if ours is None:  # written by a version without digests
        digest_file(older).unlink(missing_ok=True)
        os.replace(path, older)
        return
    _note(older, [*ours, *(_noted(older) or [])])
    os.replace(path, older)
    _note(older, ours)


def load_checkpoint(path: Path, keys: Iterable[str] = ("state_dict",), owner: str | None = None) -> dict[str, Any]:
    """Read and verify a checkpoint. Nothing in the file is executed.

    Args:
        path: The file.
        keys: Required keys, of :data:`RESUME_KEYS`.
        owner: Id of the run that wrote it. If None, or if the checkpoint names no run, this is not checked.

    Raises:
        UserError: The file is absent, damaged, incomplete, holds more than plain tensors, or belongs to another run.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        verify(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path} does not load: it is not a checkpoint of plain tensors ({type(error).__name__}: {reason})"
        ) from error
    missing = [key for key in keys if not isinstance(saved, dict) or key not in saved]
    if missing:
        raise UserError(f"{path} does not load: it is not a complete checkpoint, it lacks {', '.join(missing)}")
    wrong = [key for key in keys if not isinstance(saved[key], RESUME_KEYS[key])]
    if wrong or not all(isinstance(name, str) for name in saved.get("state_dict", ())):
        raise UserError(f"{path} does not load: no checkpoint has such {', '.join(wrong or ['names of weights'])}")
    found = saved.get("run_id")
    if owner is not None and found not in (None, owner):
        raise UserError(f"{path} belongs to another configuration (run {found})")
    return saved


def verify(path: Path) -> None:
    """Raise UserError unless a checkpoint has the contents it was written with.

    Without a digest beside it, the checksums that torch.save puts into the file are verified instead.
    """
    noted = _noted(path)
    if noted is not None:
        if _sha256(path) not in noted:
            raise UserError(
                f"{path} does not load: it is damaged or was replaced, its SHA-256 is not the one in "
                f"{digest_file(path).name}"
            )
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        if broken is not None:
            raise UserError(f"{path} does not load: it is damaged (wrong checksum of {broken})")


def load_best(folder: Path, identity: str | None, epoch: int | None, step: int | None = None) -> dict[str, Any]:
    """Read ``best.ckpt`` in ``folder`` and verify that it is of the best epoch.

    Args:
        folder: The folder of checkpoints.
        identity: Id of the run.
        epoch: The best epoch. If None, it is not checked.
        step: The optimizer step of the best epoch. If None, it is not checked.

    Raises:
        UserError: As :func:`load_checkpoint`, or the file is of another epoch.
    """
    path = folder / "best.ckpt"
    saved = load_checkpoint(path, ("state_dict", "epoch", "global_step"), identity)
    check_place(path, saved, "epoch", epoch, "the best epoch is")
    check_place(path, saved, "global_step", step, "the best one is at")
    return saved


def check_place(path: Path, saved: dict[str, Any], key: str, expected: int | None, what: str) -> None:
    """Raise UserError unless ``saved[key]``, an epoch or a step, is as expected."""
    if expected is not None and key in saved and saved[key] != expected:
        raise UserError(f"{path} is of {key.replace('global_', '')} {saved[key]}, but {what} {expected}")


def best_of(saved: dict[str, Any]) -> tuple[int | None, int | None]:
    """(epoch, step) of the best epoch in a checkpoint's state; None for a missing value."""
    state = saved["callbacks"].get(KEPT_BY)
    return (state.get("best_epoch"), state.get("best_step")) if isinstance(state, dict) else (None, None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(path: Path, digests: Iterable[str]) -> None:
    lines = [f"{digest}  {path.name}\n" for digest in dict.fromkeys(digests)]
    write_atomically(digest_file(path), "".join(lines))


def _noted(path: Path) -> list[str] | None:
    """Recorded digests of ``path``; None if there is no digest file. A damaged line matches no checkpoint."""
    try:
        lines = digest_file(path).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {digest_file(path)}: {error.strerror}") from error
    return [digest for digest, _, name in (line.partition("  ") for line in lines) if name == path.name]
