"""The record of a run: its id and folder, and reading and writing of result.json."""

from __future__ import annotations

import hashlib
import json
import os
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

# Keys that were added later; older records without them are complete.
LATER_KEYS = ("machine", "uncommitted_changes")

LIBRARIES = (
    "torch", "pytorch-lightning", "hydra-core", "torch-geometric", "timm", "numpy", "scipy", "scikit-learn",
)  # fmt: skip
# Types of the values of these keys.
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "experiment": str, "run_id": str, "seed": int, "fidelity": str, "protocol": str, "task": str, "num_params": int,
    "epochs": int, "seconds": (int, float), "peak_memory_mb": (int, float), "device": str, "git_commit": str,
}  # fmt: skip
FORCED = ".forced"  # in a run folder: the Slurm job that has started the run over
CHECKSUM = "record_sha256"  # in files only: checksum of the other keys

# Variant of the user's own data, which may change under the same name.
USER_DATA = "user data"
# Variant of data with the published sizes whose hash is unknown.
COUNTS_ONLY = "exact in its counts, contents not checked"

# Flags of /proc/cpuinfo by which numerical libraries select kernels.
INSTRUCTION_SETS = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_int8", "asimd", "sve", "sve2", "bf16",
)  # fmt: skip

# Keys that do not change a result and are left out of the id: paths, display, hardware. None: the whole section.
NOT_IN_ID: Mapping[str, tuple[str, ...] | None] = {
    "paths": None,
    "logger": None,
    "force": None,
    "tags": None,
    "sweep": None,
    "precision_by_fidelity": None,  # counts as trainer.precision
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "log_every_n_steps"),
    "data": ("root", "num_workers", "cache"),
    "callbacks": ("progress", "save_every_n_epochs", "pictures", "monitor_by_protocol"),  # counts as callbacks.monitor
}

# Keys that were added after results had been recorded: for each fidelity, the value that reproduces the former
# behaviour. At that value a run id leaves the key out, so that a new option keeps all recorded ids. Without an entry
# for a fidelity the former behaviour is gone, and the key is always hashed.
ADDED_KEYS: Mapping[str, Mapping[str, Any]] = {
    "model.affine_init_std": {"paper": None},
    "task.mask_first_patch": {"paper": None},
    "data.drop_empty": {"paper": False, "released": False},
    "data.stratified": {"paper": True, "released": True},
    "data.split": {"paper": "drawn", "released": "drawn"},
    "data.semi_supervised": {"paper": False, "released": False},
    "data.inductive": {"paper": False, "released": False},
    "data.drop_features": {"paper": None, "released": None},
    "data.group_by": {"paper": None, "released": None},
    "data.neighbour_hops": {"paper": 0, "released": 0},
    "data.encoding_bins": {"paper": 0, "released": 0},
    "model.degrees": {"paper": False, "released": False},
    "model.known_labels": {"paper": False, "released": False},
    "model.label_counts": {"paper": False, "released": False},
    "model.label_hops": {"paper": 1, "released": 1},
    "model.num_blocks": {"paper": 1, "released": 1},
    "model.energy_features": {"paper": False, "released": False},
    "data.occluded_range": {"paper": None, "released": None},
    "task.init_weights": {"paper": None, "released": None},
    "task.steps_range": {"paper": None, "released": None},
    "task.loss_steps": {"paper": 1, "released": 1},
    "task.rest_steps": {"paper": 0, "released": 0},
    "task.masked_share": {"paper": 0.2, "released": 0.2},
    "callbacks.patience": {"paper": None, "released": None},
    "task.class_weights": {"paper": False, "released": False},
}


def hashed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that the run id hashes (:data:`NOT_IN_ID`, :data:`ADDED_KEYS`)."""
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
    text = json.dumps(hashed_config(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without(value: Any, names: tuple[str, ...]) -> Any:
    """``value`` with the keys ``names`` left out at any depth: data.source.root is as little a setting as data.root."""
    if isinstance(value, Mapping):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(v, names) for v in value] if isinstance(value, list) else value


def run_dir(runs: str | Path, experiment: str, identity: str) -> Path:
    """Folder of a run: <runs>/<experiment>/<run_id>.

    Raises:
        UserError: ``experiment`` is not a plain folder name.
    """
    return Path(runs) / plain_name(experiment, "name") / plain_name(identity, "run_id")


def plain_name(name: Any, key: str) -> str:
    """``name`` if it is valid as the name of one folder.

    Args:
        name: The name.
        key: Key of the configuration or record, for the error message.

    Raises:
        UserError: It is not a string, is empty, hidden or a path, or has invalid characters.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^\W_][\w.+=@, -]{0,199}", name):
        raise UserError(
            f"{key} must be the name of a folder, of letters, digits and . _ - + = @, and begin with a letter or a "
            f"digit, not {name!r}"
        )
    return name


def write_result(folder: Path, record: Mapping[str, Any]) -> None:
    """Write result.json, last and atomically: its presence marks the run as finished.

    The file also has a checksum of the record, which :func:`read_result` verifies and removes.

    Raises:
        ValueError: The record lacks a key of :data:`RESULT_KEYS`.
        UserError: The disk is full or read-only.
    """
    missing = [key for key in RESULT_KEYS if key not in record]
    if missing:
        raise ValueError(f"the record of {folder} lacks {', '.join(missing)}")
    write_atomically(folder / "result.json", json.dumps(with_checksum(record), indent=2, sort_keys=True) + "\n")


def forced(force: bool, folder: Path) -> bool:
    """Whether a run starts over: with ``force``, unless a requeued Slurm job has started it over before."""
    if not force or not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return force
    try:
        return (folder / FORCED).read_text() != os.environ.get("SLURM_JOB_ID")
    except OSError:
        return True


def read_result(folder: Path, identity: str | None = None) -> dict[str, Any] | None:
    """Record in ``folder``; None if it is absent, corrupt or truncated.

    Args:
        folder: A run's folder.
        identity: Expected run id. If None, any.
    """
    try:
        record = load_record(folder / "result.json")
    except UserError:
        return None
    return record if identity is None or record["run_id"] == identity else None


def load_record(file: Path) -> dict[str, Any]:
    """Read the record in a result.json.

    Raises:
        UserError: The file cannot be read, is incomplete, or was changed after it was written.
    """
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not the record of a finished run: {error}") from error
    problem = malformed(record, RESULT_KEYS)
    if problem is not None:
        raise UserError(f"{file} is not a complete record: {problem}")
    return verified(record, str(file))


def malformed(record: Any, required: Iterable[str]) -> str | None:
    """Description of what is wrong with a record's form; None if it has the ``required`` keys with values of the right
    type.
    """
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
    for name, value in (*record.items(), *record.get("metrics", {}).items()):
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            return f"{name} is too large for a number"
    for key in ("name", "variant", "sha256"):
        if not isinstance(record.get("dataset", {}).get(key, ""), str | None):
            return f"dataset.{key} is {_kind(record['dataset'][key])}"
    return None


def _kind(value: Any) -> str:
    return {type(None): "null", dict: "a mapping", list: "a list", str: "a text", bool: "true or false"}.get(
        type(value), f"a number ({value})" if isinstance(value, int | float) else type(value).__name__
    )


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """``record`` with the checksum of its keys, as it is written to a file."""
    return {**record, CHECKSUM: _checksum(record)}


def verified(record: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``record`` without its checksum.

    Raises:
        UserError: The checksum does not match. A record without one is not checked.
    """
    content = {key: value for key, value in record.items() if key != CHECKSUM}
    if record.get(CHECKSUM) not in (None, _checksum(content)):
        raise UserError(f"{source} is damaged: its checksum does not match")
    return content


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
    """True if ``commit``, from :func:`git_commit`, is of a tree with changes; None outside a checkout."""
    return None if commit == "unknown" else commit.endswith("+changes")


def machine(threads: int) -> dict[str, Any]:
    """Machine properties that the last digits of a result depend on: CPU, instruction sets, threads.

    Args:
        threads: Number of threads of the run.

    Returns:
        ``cpu`` (model name), ``instruction_sets`` (those of :data:`INSTRUCTION_SETS` that it has, in Linux's names;
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
    """Versions of Python and of the libraries that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in LIBRARIES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
