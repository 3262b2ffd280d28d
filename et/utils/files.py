"""Atomic writes: a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from et.utils.errors import UserError, disk_problem

# errno of an OSError when disk space, file handles or memory ran out, which says nothing about the file.
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context with a temporary path beside ``path``, with its suffix; it replaces ``path`` if the block succeeds.

    Raises:
        UserError: The disk is full or read-only, or there is no permission.
    """
    fresh = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        problem = disk_problem(error)
        if isinstance(error, PermissionError):
            problem = "there is no permission; write elsewhere"
        if problem is None:
            raise
        raise UserError(f"cannot write {path}: {problem}") from error


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` and flush it to disk before it becomes visible.

    Raises:
        UserError: The disk is full or read-only.
    """
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
