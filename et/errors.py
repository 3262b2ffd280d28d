"""Errors that are meant for the person at the keyboard, or for what started the process."""

from __future__ import annotations

import signal

from hydra.errors import InstantiationException


class UserError(RuntimeError):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    Entry points print it without a traceback and leave with status 1.
    """


class Interrupted(SystemExit):
    """A signal ended the run, whose state is saved: the same command resumes it.

    The exit status is :data:`RESUMABLE` after USR1 and USR2, by which Slurm warns of the time limit, else 128 + the
    signal's number.
    """

    RESUMABLE = 75  # EX_TEMPFAIL: try again

    def __init__(self, signum: int):
        self.signum = signum
        warning = signum in (signal.SIGUSR1, signal.SIGUSR2)
        super().__init__(self.RESUMABLE if warning else 128 + signum)

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"interrupted by {name}, with its state saved; start the same command again to resume"


def unwrapped(error: Exception) -> Exception:
    """What a constructor raised, without Hydra's wrapping; any other error as it is."""
    cause = error.__cause__
    return cause if isinstance(error, InstantiationException) and isinstance(cause, Exception) else error


def is_user_error(error: Exception) -> bool:
    """Whether the user can mend ``error``: a UserError, or what a constructor says about a configured value."""
    return isinstance(unwrapped(error), UserError) or (
        isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError)
    )
