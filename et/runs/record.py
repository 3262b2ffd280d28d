"""The record of a run: where it lives, what it is called, how it is written and read."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from et.utils.errors import UserError
from et.utils.files import write_atomically
from et.utils.paths import IN_CHECKOUT, ROOT

RESULT_KEYS = (
    "experiment", "run_id", "seed", "fidelity", "protocol", "task", "dataset", "metrics", "num_params", "epochs",
    "seconds", "peak_memory_mb", "device", "git_commit", "versions",
)  # fmt: skip

# Keys that records have had only since they were added: a record without them is whole.
LATER_KEYS = ("machine", "uncommitted_changes")

LIBRARIES = (
    "torch", "pytorch-lightning", "hydra-core", "torch-geometric", "timm", "numpy", "scipy", "scikit-learn",
)  # fmt: skip
# What else than a mapping of anything the values of these keys are.
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "experiment": str, "run_id": str, "seed": int, "fidelity": str, "protocol": str, "task": str, "num_params": int,
    "epochs": int, "seconds": (int, float), "peak_memory_mb": (int, float), "device": str, "git_commit": str,
}  # fmt: skip
_CHECKSUM = "record_sha256"  # in result.json only: of the rest of the record

# What a record calls data that are nobody's published ones, and that may change under the same name.
USER_DATA = "user data"
# What it calls data that are as large as the published ones, and of whose contents no hash is known.
COUNTS_ONLY = "exact in its counts, contents not checked"

# Flags of /proc/cpuinfo that numerical libraries choose their code by.
INSTRUCTION_SETS = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_int8", "asimd", "sve", "sve2", "bf16",
)  # fmt: skip

# What does not change a run's result, and so has no part in its id: where things are, what is shown, what it runs on.
NOT_IN_ID: Mapping[str, tuple[str, ...] | None] = {
    "paths": None,
    "logger": None,
    "force": None,
    "tags": None,
    "sweep": None,
    "precision_by_fidelity": None,  # counts as trainer.precision
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "log_every_n_steps"),
    "data": ("root", "num_workers", "cache"),
    "callbacks": ("progress", "save_every_n_epochs", "pictures"),
}

# Keys that came after recorded results: for each fidelity, the value at which a run is what it was before the key
# existed. A run id leaves the key out at that value, so that a new option changes no recorded run. Where a fidelity is
# absent, its runs were something else before, and the key always counts.
ADDED_KEYS: Mapping[str, Mapping[str, Any]] = {
    "model.affine_init_std": {"paper": None},
    "task.mask_first_patch": {"paper": None},
    "data.drop_empty": {"paper": False, "released": False},
    "data.stratified": {"paper": True, "released": True},
}


def counted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that a run id is made of."""
    sections = {key: value for key, value in config.items() if NOT_IN_ID.get(key, ()) is not None}
    kept = {key: _without(value, NOT_IN_ID.get(key) or ()) for key, value in sections.items()}
    for key, before in ADDED_KEYS.items():
        if config.get("fidelity") in before:
            _drop(kept, key.split("."), before[config["fidelity"]])
    return kept


def _drop(section: Any, path: Sequence[str], value: Any) -> None:
    """Delete the key at ``path`` from nested dictionaries, in place, if it is there and has this ``value``."""
    for name in path[:-1]:
        section = section.get(name) if isinstance(section, dict) else None
    if isinstance(section, dict) and path[-1] in section and section[path[-1]] == value:
        del section[path[-1]]


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
    """Folder of a run: <runs>/<experiment>/<run_id>.

    Raises:
        UserError: ``experiment`` is no plain name of a folder: the run would be written elsewhere.
    """
    return Path(runs) / plain_name(experiment, "name") / plain_name(identity, "run_id")


def plain_name(name: Any, key: str) -> str:
    """``name`` if it can be the name of one folder.

    Raises:
        UserError: it is no text, empty, hidden, a path, or has characters that no name should have; ``key`` has it.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^\W_][\w.+=@, -]{0,199}", name):
        raise UserError(
            f"{key} must be the name of a folder, of letters, digits and . _ - + = @, and begin with a letter or a "
            f"digit, not {name!r}"
        )
    return name


def write_result(folder: Path, record: Mapping[str, Any]) -> None:
    """Write result.json, last and atomically: its presence says that the run is finished.

    The file also has a checksum of the record, which :func:`read_result` verifies and leaves out.

    Raises:
        ValueError: the record lacks a key of :data:`RESULT_KEYS`.
        UserError: the disk is full or read-only.
    """
    missing = [key for key in RESULT_KEYS if key not in record]
    if missing:
        raise ValueError(f"the record of {folder} lacks {', '.join(missing)}")
    content = {**record, _CHECKSUM: _checksum(record)}
    write_atomically(folder / "result.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_result(folder: Path, identity: str | None = None) -> dict[str, Any] | None:
    """The record in ``folder``, or None where there is none that is whole (absent, corrupt or half-written).

    Args:
        folder: a run's folder.
        identity: id of the run that it must be of; None: of any.
    """
    try:
        record = load_record(folder / "result.json")
    except UserError:
        return None
    return record if identity is None or record["run_id"] == identity else None


def load_record(file: Path) -> dict[str, Any]:
    """The record in a result.json.

    Raises:
        UserError: it cannot be read, is no whole record, or is not as it was written.
    """
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is no record of a finished run: {error}") from error
    problem = malformed(record, RESULT_KEYS)
    if problem is not None:
        raise UserError(f"{file} is no whole record: {problem}")
    checksum = record.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(record):
        raise UserError(f"{file} is damaged: it is not as it was written")
    return record


def malformed(record: Any, required: Iterable[str]) -> str | None:
    """What is wrong with the form of a record; None if it has the ``required`` keys with values of the right kind."""
    if not isinstance(record, Mapping):
        return f"it is {_kind(record)}"
    missing = [key for key in required if key not in record]
    if missing:
        return f"it lacks {', '.join(missing)}"
    for key, types in _TYPES.items():
        if key in record and (not isinstance(record[key], types) or isinstance(record[key], bool)):
            return f"{key} is {_kind(record[key])}"
    for key in ("dataset", "metrics", "versions"):
        if key in record and not isinstance(record[key], Mapping):
            return f"{key} is {_kind(record[key])}"
    for name, value in record.get("metrics", {}).items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            return f"metrics.{name} is {_kind(value)}"
    return None


def _kind(value: Any) -> str:
    return {type(None): "null", dict: "a mapping", list: "a list", str: "a text", bool: "true or false"}.get(
        type(value), f"a number ({value})" if isinstance(value, int | float) else type(value).__name__
    )


def _checksum(record: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(record)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def git_commit(root: Path | None = None) -> str:
    """Commit of the source tree, with "+changes" where files differ from it; "unknown" outside a checkout."""
    if root is None and not IN_CHECKOUT:  # an installed package may lie inside the repository of another project
        return "unknown"
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


def uncommitted_changes(commit: str) -> bool | None:
    """Whether ``commit``, as :func:`git_commit` gives it, is of a tree with changes; None outside a checkout."""
    return None if commit == "unknown" else commit.endswith("+changes")


def machine(threads: int) -> dict[str, Any]:
    """The part of the machine that the last digits of a result depend on: CPU, its instruction sets, threads.

    Args:
        threads: Number of threads that the run computes with.

    Returns:
        ``cpu`` (model name), ``instruction_sets`` (those of :data:`INSTRUCTION_SETS` that it has, as Linux calls them;
        empty if unknown) and ``threads``.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags = (about.get("flags") or about.get("Features") or "").split()
    name = about.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key} {about[key]}" for key in ("cpu family", "model") if key in about]
    return {
        "cpu": f"{name} ({', '.join(numbers)})" if numbers else name,
        "instruction_sets": [flag for flag in INSTRUCTION_SETS if flag in flags],
        "threads": threads,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries a number depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in LIBRARIES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
