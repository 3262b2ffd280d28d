"""Errors for the person at the keyboard, or for the program that started the process."""

from __future__ import annotations

import difflib
import errno
import inspect
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

from et.utils.startup import RESUMABLE, exit_status, tolerate_encoding

T = TypeVar("T")
LOADER_DIED = "DataLoader worker (pid"  # in PyTorch's message
LOADER_ADVICE = " (killed, or out of memory): free some memory and start the same command again"


class UserError(RuntimeError):
    """An error that the user can fix: the message says what is wrong, where, and what to do.

    Entry points print it without a traceback and exit with status 1.

    Attributes:
        stopped_by: The signal that had told the run to stop, if it failed to save its state: a sweep ends with it. None
            otherwise.
    """

    stopped_by: int | None = None


@dataclass(frozen=True)
class ArgumentsOf:
    """Annotation of an argument whose value is a mapping of arguments of another class or function, by import path.

    ``block: Annotated[Mapping, ArgumentsOf("et.core.block.EnergyTransformerBlock")]``: unknown keys in it are refused.
    """

    target: str


class Interrupted(SystemExit):
    """A signal ended the run and its state is saved: the same command resumes it.

    The exit status is :data:`RESUMABLE` after USR1 and USR2, which Slurm sends before the time limit, else 128 + the
    signal's number.
    """

    RESUMABLE = RESUMABLE

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(exit_status(signum))

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return (
            f"interrupted by {name}, with its state saved; start the same command again to resume, without force=true"
        )


def unwrapped(error: Exception) -> Exception:
    """The original error of a constructor, without Hydra's wrapper. A full disk, the death of a loader process and a
    setting that Lightning refuses are returned as a UserError, other errors unchanged.

    Errors of a data loader process lose that process's traceback. A key that the constructor does not accept comes from
    the command line or from an experiment for another class: it becomes a :class:`UserError` with the valid keys.
    """
    cause = error.__cause__
    problem = disk_problem(error)
    if problem is not None:
        return UserError(f"cannot write {getattr(error, 'filename', None) or 'a file'}: {problem}")
    if isinstance(error, UserError) and str(error).startswith("Caught UserError in DataLoader worker"):
        return UserError(str(error).rstrip().rsplit("UserError: ", 1)[-1])  # the worker's traceback stands before it
    if loader_died(error):
        return UserError(f"a process of the data loader died{LOADER_ADVICE}")
    if is_misconfiguration(error):
        return UserError(f"Lightning refuses this configuration: {error}")
    if not isinstance(error, InstantiationException) or not isinstance(cause, Exception):
        return error
    return _key_not_taken(error, cause) or (unwrapped(cause) if is_misconfiguration(cause) else cause)


def loader_died(error: BaseException) -> bool:
    """True if ``error`` is PyTorch's about a killed process of a DataLoader."""
    return isinstance(error, RuntimeError) and LOADER_DIED in str(error) and not isinstance(error, UserError)


def is_misconfiguration(error: BaseException) -> bool:
    """True for Lightning's MisconfigurationException, by name: Lightning takes seconds to import."""
    return any(kind.__name__ == "MisconfigurationException" for kind in type(error).__mro__)


@contextmanager
def raise_user_errors() -> Iterator[None]:
    """Context that raises what the user can fix as the UserError of :func:`unwrapped`."""
    try:
        yield
    except Exception as error:
        told = unwrapped(error)
        if told is error or not isinstance(told, UserError):
            raise
        raise told from error


def _key_not_taken(error: InstantiationException, cause: Exception) -> UserError | None:
    """UserError about a key that the class does not accept or lacks; None if ``cause`` is something else."""
    section = found[1] if (found := re.search(r"full_key: ([\w.]+)", str(error))) else ""
    lacking = re.search(r"(\w+)\.__init__\(\) missing \d+ required [\w-]+ arguments?: (.+)", str(cause))
    target = re.search(r"target '([\w.]+)'", str(error))
    built_of = (target[1], keywords_go_to(constructor_of(target[1])[1])) if target is not None else ()
    if lacking is not None and lacking[1] in [name.rpartition(".")[2] for name in built_of if name]:
        return UserError(f"{section or target[1]}: {lacking[1]} needs {lacking[2]}")
    unexpected = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(cause))
    if unexpected is None or target is None:
        return None
    built, _ = constructor_of(target[1])
    taken, key = accepted_keys(target[1]), unexpected[2]
    names = {c.__name__ for c in inspect.getmro(built)} if inspect.isclass(built) else set()
    if taken is None or key in taken or unexpected[1] not in names:
        return None  # a mistake within the constructor, which needs its traceback
    return UserError(key_not_taken(section, key, target[1], taken))


def constructor_of(target: str) -> tuple[Any, Any]:
    """(class or function that ``target`` builds, callable that builds it), also for alternative constructors.

    Raises:
        ImportError: The name does not exist.
    """
    from hydra.utils import get_object

    call = get_object(target)
    owner = getattr(call, "__self__", None)  # of a constructor such as GraphEnergyTransformer.of_fidelity
    return (owner if inspect.isclass(owner) else call), call


@cache
def accepted_keys(target: str) -> tuple[str, ...] | None:
    """Argument names of a class or function; None if it accepts any.

    ``**kwargs`` of a constructor are replaced by the arguments of the class they are passed on to: the next base class,
    or the target of :class:`ArgumentsOf`.

    Raises:
        ImportError: The name does not exist.
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
        if (inner := keywords_go_to(source)) is not None:
            more = accepted_keys(inner)
            return None if more is None else tuple(name for name in (*names, *more) if name not in ("self", "cls"))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return tuple(name for name in names if name not in ("self", "cls"))
    return None


def handed_on_to(hint: Any) -> str | None:
    """The target of the :class:`ArgumentsOf` in an annotation."""
    return next((mark.target for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, ArgumentsOf)), None)


def keywords_go_to(call: Callable[..., Any]) -> str | None:
    """What takes the ``**kwargs`` of a function or a class, if :class:`ArgumentsOf` annotates them."""
    call = call.__init__ if inspect.isclass(call) else call
    try:
        rest = [p for p in inspect.signature(call).parameters.values() if p.kind is p.VAR_KEYWORD]
        return handed_on_to(get_type_hints(call, include_extras=True)[rest[0].name]) if rest else None
    except (ValueError, TypeError, NameError, KeyError):  # builtins have no signature, and others' annotations may fail
        return None


def key_not_taken(section: str, key: str, target: str, taken: Sequence[str]) -> str:
    """Error message about a key that the class of a section does not accept."""
    built, _ = constructor_of(target)
    advice = key_advice(section, key, list(taken))
    if section == "model" and advice.startswith("it takes"):
        advice += ". An experiment sets the keys of its own model; others have their experiments (_gin, _mlp, ...)"
    return f"{section}.{key}: {built.__name__} takes no {key}; {advice}"


def key_advice(section: str, key: str, taken: list[str]) -> str:
    """Advice on replacing ``section.key`` by one of the valid keys ``taken``."""
    close = difflib.get_close_matches(key, taken, 1, cutoff=0.8)
    return f"did you mean {section}.{close[0]}?" if close else f"it takes {', '.join(taken) or 'none'}"


def disk_problem(error: BaseException) -> str | None:
    """Explanation if a file could not be written for lack of space or permission; else None."""
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


def first_line(error: Exception) -> str:
    """First line of an error's message, or its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_user_error(error: Exception) -> bool:
    """True if the user can fix ``error``: a UserError, or a constructor's ValueError about a configured value."""
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
    return str(unwrapped(error)) if is_user_error(error) else None
