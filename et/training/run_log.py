"""run.log in a run's folder: when the run was started and by what command, warnings, and how it ended."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

OVERRIDES = "ET_OVERRIDES"  # the command line's overrides, for the processes that a run starts
LOGGERS = (None, "pytorch_lightning", "lightning_fabric")  # the root, and those that do not hand on to it

log = logging.getLogger("et")


def command_overrides() -> list[str]:
    """Overrides of the command line or of the sweep's job; empty if the run was started by other code."""
    if HydraConfig.initialized():
        return list(HydraConfig.get().overrides.task)
    return json.loads(os.environ.get(OVERRIDES, "[]"))


@contextmanager
def logged(file: Path, title: str) -> Iterator[None]:
    """Append what is logged and warned of inside the context, and the error that ends it, to a file.

    Args:
        file: The file.
        title: First line, beside the command.
    """
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    loggers = [logger for logger in loggers if logger is logging.root or not logger.propagate]
    level, show = log.level, warnings.showwarning

    def show_and_log(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        log.warning("%s: %s", category.__name__, message)
        show(message, category, *place, **more)

    for logger in loggers:
        logger.addHandler(handler)
    log.setLevel(logging.INFO)
    warnings.showwarning = show_and_log
    try:
        log.info("%s: %s", title, " ".join(sys.argv))
        yield
        log.info("finished")
    except BaseException as error:
        log.error("ended: %s", error, exc_info=not isinstance(error, SystemExit | KeyboardInterrupt))
        raise
    finally:
        warnings.showwarning = show
        log.setLevel(level)
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
