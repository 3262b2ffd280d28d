"""The record of a run: where it lives, what it is called, how it is written and read."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from et.files import write_atomically
from et.places import ROOT

RESULT_KEYS = (
    "experiment", "run_id", "seed", "fidelity", "protocol", "task", "dataset", "metrics", "num_params", "epochs",
    "seconds", "peak_memory_mb", "device", "git_commit", "versions",
)  # fmt: skip

# What a record calls data that are nobody's published ones, and that may change under the same name.
USER_DATA = "user data"
# What it calls data that are as large as the published ones, and of whose contents no hash is known.
COUNTS_ONLY = "exact in its counts, contents not checked"

# What does not change a run's result, and so has no part in its id: where things are, what is shown, what it runs on.
NOT_IN_ID: Mapping[str, tuple[str, ...] | None] = {
    "paths": None,
    "logger": None,
    "force": None,
    "tags": None,
    "sweep": None,
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "log_every_n_steps"),
    "data": ("root", "num_workers", "cache"),
    "callbacks": ("progress", "save_every_n_epochs", "pictures"),
}


# Options that recorded runs did not have: they are part of an id only where they are not at these values.
ABSENT_AT_DEFAULT: Mapping[str, Mapping[str, Any]] = {"data": {"drop_empty": False, "stratified": True}}


def counted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that a run id is made of."""
    sections = {key: value for key, value in config.items() if NOT_IN_ID.get(key, ()) is not None}
    parts = {key: _without(value, NOT_IN_ID.get(key) or ()) for key, value in sections.items()}
    for section, defaults in ABSENT_AT_DEFAULT.items():
        if isinstance(parts.get(section), dict):
            parts[section] = {k: v for k, v in parts[section].items() if k not in defaults or v != defaults[k]}
    return parts


def run_id(config: Mapping[str, Any]) -> str:
    """Hash of a resolved configuration without paths, logger and hardware: 12 hexadecimal digits."""
    text = json.dumps(counted(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without(value: Any, names: tuple[str, ...]) -> Any:
    """``value`` with the keys ``names`` left out at any depth: data.source.root is as little a setting as data.root."""
    if isinstance(value, Mapping):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(v, names) for v in value] if isinstance(value, list) else value


def run_dir(runs: str | Path, experiment: str, identity: str) -> Path:
    """Folder of a run: <runs>/<experiment>/<run_id>."""
    return Path(runs) / experiment / identity


def write_result(folder: Path, record: Mapping[str, Any]) -> None:
    """Write result.json, last and atomically: its presence says that the run is finished.

    Raises:
        ValueError: the record lacks a key of :data:`RESULT_KEYS`.
    """
    missing = [key for key in RESULT_KEYS if key not in record]
    if missing:
        raise ValueError(f"the record of {folder} lacks {', '.join(missing)}")
    write_atomically(folder / "result.json", json.dumps(record, indent=2, sort_keys=True) + "\n")


def read_result(folder: Path) -> dict[str, Any] | None:
    """The record in ``folder``, or None where there is none that is whole (absent, corrupt or half-written)."""
    try:
        record = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and all(key in record for key in RESULT_KEYS)
    return record if whole else None


def git_commit(root: Path | None = None) -> str:
    """Commit of the source tree, with "+changes" where files differ from it; "unknown" outside a checkout."""
    root = root or ROOT
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=normal", "--", "et", "conf", "train.py"],
            cwd=root, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if commit.returncode:
        return "unknown"
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries a number depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in ("torch", "pytorch-lightning", "hydra-core", "torch-geometric", "timm", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
