"""Errors that are meant for the person at the keyboard, or for what started the process."""

from __future__ import annotations

import difflib
import errno
import inspect
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

from et.utils.startup import RESUMABLE, exit_status, tolerate_encoding

T = TypeVar("T")


class UserError(RuntimeError):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    Entry points print it without a traceback and leave with status 1.
    """


class Interrupted(SystemExit):
    """A signal ended the run, whose state is saved: the same command resumes it.

    The exit status is :data:`RESUMABLE` after USR1 and USR2, by which Slurm warns of the time limit, else 128 + the
    signal's number.
    """

    RESUMABLE = RESUMABLE

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(exit_status(signum))

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"interrupted by {name}, with its state saved; start the same command again to resume"


def unwrapped(error: Exception) -> Exception:
    """What a constructor raised, without Hydra's wrapping; any other error as it is, a full disk as a sentence.

    What a process of a data loader raised comes without that process's traceback.

    A key that the constructor does not take comes from the command line or from an experiment for another class: that
    is a :class:`UserError`, which names the keys there are.
    """
    cause = error.__cause__
    problem = disk_problem(error)
    if problem is not None:
        return UserError(f"cannot write {getattr(error, 'filename', None) or 'a file'}: {problem}")
    if isinstance(error, UserError) and str(error).startswith("Caught UserError in DataLoader worker"):
        return UserError(str(error).rstrip().rsplit("UserError: ", 1)[-1])  # the worker's traceback stands before it
    if not isinstance(error, InstantiationException) or not isinstance(cause, Exception):
        return error
    return _key_not_taken(error, cause) or cause


def _key_not_taken(error: InstantiationException, cause: Exception) -> UserError | None:
    """That the class ``error`` is about takes no such key, and what it takes; None if ``cause`` is something else."""
    unexpected = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(cause))
    target = re.search(r"target '([\w.]+)'", str(error))
    if unexpected is None or target is None:
        return None
    built, _ = constructor_of(target[1])
    taken, key = accepted_keys(target[1]), unexpected[2]
    names = {c.__name__ for c in inspect.getmro(built)} if inspect.isclass(built) else set()
    if taken is None or key in taken or unexpected[1] not in names:
        return None  # a mistake within the constructor, which needs its traceback
    section = found[1] if (found := re.search(r"full_key: ([\w.]+)", str(error))) else ""
    return UserError(key_not_taken(section, key, target[1], taken))


def constructor_of(target: str) -> tuple[Any, Any]:
    """(what ``target`` builds, what is called for that), of a class, a function, or a class's other constructor.

    Raises:
        ImportError: there is none of that name.
    """
    from hydra.utils import get_object

    call = get_object(target)
    owner = getattr(call, "__self__", None)  # of a constructor such as GraphEnergyTransformer.of_fidelity
    return (owner if inspect.isclass(owner) else call), call


@cache
def accepted_keys(target: str) -> tuple[str, ...] | None:
    """Names of the arguments of a class or function; None if it takes any.

    Arguments that a constructor hands on (``**kwargs``) are those of the class that it extends, or that it is of.

    Raises:
        ImportError: there is none of that name.
    """
    built, call = constructor_of(target)
    classes = [c for c in inspect.getmro(built) if "__init__" in vars(c)] if inspect.isclass(built) else []
    if call is built and classes == [object]:  # whose signature takes anything, and which takes nothing
        return ()
    calls = [call] if call is not built or not classes else []
    names: dict[str, None] = {}
    for source in (*calls, *(c.__init__ for c in classes)):
        parameters = list(inspect.signature(source).parameters.values())
        names |= {p.name: None for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return tuple(name for name in names if name not in ("self", "cls"))
    return None


def key_not_taken(section: str, key: str, target: str, taken: Sequence[str]) -> str:
    """What to say of a key that the class of a section does not take."""
    built, _ = constructor_of(target)
    advice = key_advice(section, key, list(taken))
    if section == "model" and advice.startswith("it takes"):
        advice += ". An experiment sets the keys of its own model; others have their experiments (_gin, _mlp, ...)"
    return f"{section}.{key}: {built.__name__} takes no {key}; {advice}"


def key_advice(section: str, key: str, taken: list[str]) -> str:
    """What to write instead of ``section.key`` where only the keys ``taken`` are known."""
    close = difflib.get_close_matches(key, taken, 1, cutoff=0.8)
    return f"did you mean {section}.{close[0]}?" if close else f"it takes {', '.join(taken) or 'none'}"


def disk_problem(error: BaseException) -> str | None:
    """What to say where a file could not be written for want of room, or of permission to write; else None."""
    room = "make room and start the same command again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full; {room}"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "the file system is read-only; write elsewhere"
    # numpy and torch report a short write without the system's error number.
    short = (isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", str(error))) or (
        isinstance(error, RuntimeError) and "PytorchStreamWriter failed" in str(error)
    )
    return f"not all of it could be written, probably because the disk is full; {room}" if short else None


def is_user_error(error: Exception) -> bool:
    """Whether the user can mend ``error``: a UserError, or what a constructor says about a configured value."""
    return isinstance(unwrapped(error), UserError) or (
        isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError)
    )


def exit_on_user_error(function: Callable[[], T]) -> T:
    """Run ``function``; an error the user can mend becomes its message on stderr and exit status 1."""
    tolerate_encoding()
    try:
        return function()
    except Interrupted as stop:
        print(f"error: {stop}", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(exit_status(signal.SIGINT)) from None
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def user_message(error: Exception) -> str | None:
    """What to tell the person at the keyboard, or None if ``error`` needs its traceback."""
    if isinstance(error, OmegaConfBaseException):
        return f"configuration: {error}"
    if isinstance(error, UserError | InstantiationException | OSError | RuntimeError) and is_user_error(error):
        return str(unwrapped(error))
    return None
