"""Start of an entry point, before slow imports: signal handlers and the terminal's encoding.

Imports the standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from types import FrameType

RESUMABLE = 75  # EX_TEMPFAIL: try again
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def prepare() -> None:
    """Let signals end the process with the exit status of an interrupted run, and make printing safe.

    During training :class:`et.training.graceful_stop.StopOnSignal` replaces the handlers and saves the state.
    """
    tolerate_encoding()
    for signum in SIGNALS:
        if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):  # an ignored one stays ignored
            signal.signal(signum, leave)


def exit_status(signum: int) -> int:
    """Exit status of a run ended by a signal: 75 after USR1 and USR2, else 128 + the signal's number."""
    return RESUMABLE if signum in (signal.SIGUSR1, signal.SIGUSR2) else 128 + signum


def leave(signum: int, frame: FrameType | None) -> None:
    """Signal handler that ends the process with :func:`exit_status`."""
    name = signal.Signals(signum).name
    message = f"error: interrupted by {name}; start the same command again: it goes on from what is saved\n"
    os.write(2, message.encode("ascii"))  # print may be what the signal interrupted
    if _importing(frame):  # whose code may catch what is raised in it
        os._exit(exit_status(signum))
    raise SystemExit(exit_status(signum))


def _importing(frame: FrameType | None) -> bool:
    """True if ``frame`` runs within an import statement."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def drop_output(error: BrokenPipeError) -> int:
    """Exit status if the reader of the output has left (``| head``); flushing at exit then fails no more.

    Raises:
        BrokenPipeError: ``error``, if it is of another pipe, such as one to a process.
    """
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # reports only that there is no reader
    if not output.poll(0):
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def tolerate_encoding() -> None:
    """Print characters that the terminal's encoding lacks as question marks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
