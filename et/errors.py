"""Errors that are meant for the person at the keyboard, or for what started the process."""

from __future__ import annotations

import difflib
import inspect
import re
import signal
from pydoc import locate

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
    """What a constructor raised, without Hydra's wrapping; any other error as it is.

    What a process of a data loader raised comes without that process's traceback.

    A key that the constructor does not take comes from the command line or from an experiment for another class: that
    is a :class:`UserError`, which names the keys there are.
    """
    cause = error.__cause__
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
    owner = locate(target[1].rpartition(".")[0])  # of a constructor such as GraphEnergyTransformer.of_fidelity
    built = owner if inspect.isclass(owner) else locate(target[1])
    key, classes = unexpected[2], inspect.getmro(built) if inspect.isclass(built) else ()
    signatures = [inspect.signature(c.__init__).parameters.values() for c in classes if "__init__" in vars(c)]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = [p for p in next(iter(signatures), ()) if p.name != "self"]
    if any(p.kind in variable for p in own):  # hands its arguments on to the class that it extends
        own = [p for p in signatures[1] if p.name != "self"] if len(signatures) > 1 else own
    taken = [p.name for p in own if p.kind not in variable]
    if key in taken or unexpected[1] not in {c.__name__ for c in classes}:
        return None  # a mistake within the constructor, which needs its traceback
    section = found[1] if (found := re.search(r"full_key: ([\w.]+)", str(error))) else ""
    advice = key_advice(section, key, taken)
    if section == "model" and advice.startswith("it takes"):
        advice += ". An experiment sets the keys of its own model; others have their experiments (_gin, _mlp, ...)"
    return UserError(f"{section}.{key}: {built.__name__} takes no {key}; {advice}")


def key_advice(section: str, key: str, taken: list[str]) -> str:
    """What to write instead of ``section.key`` where only the keys ``taken`` are known."""
    close = difflib.get_close_matches(key, taken, 1, cutoff=0.8)
    return f"did you mean {section}.{close[0]}?" if close else f"it takes {', '.join(taken)}"


def is_user_error(error: Exception) -> bool:
    """Whether the user can mend ``error``: a UserError, or what a constructor says about a configured value."""
    return isinstance(unwrapped(error), UserError) or (
        isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError)
    )
