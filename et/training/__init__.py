"""A run from its configuration to its record: :func:`train`, :func:`evaluate` and :func:`predict`."""

from typing import Any

_PUBLIC = {
    "Outcome": "et.training.run", "train": "et.training.run",
    "evaluate": "et.training.evaluation", "predict": "et.training.evaluation",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Late: torch and Lightning take seconds to import, and the tasks import the modules beside this one.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
