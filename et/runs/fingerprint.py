"""Comparison of a finished run's data with the data on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from et.runs.record import USER_DATA
from et.utils.errors import UserError, unwrapped

# Data sets that contain test samples of other data sets, in any part.
OVERLAPS = {"ZINC-variant": ("ZINC", "ZINC12k")}
_HASHES: dict[str, str] = {}  # hashes of the data read so far by this process


def of_user_data(record: Mapping[str, Any]) -> bool:
    """True if a run's data are the user's own, which may change under the same name."""
    return str(record["dataset"].get("variant")).startswith(USER_DATA)


def check_unseen(trained_on: str, tested_on: str) -> None:
    """Refuse to test a model on another data set whose test part shares samples with what it was trained on.

    Args:
        trained_on: Name of the training data, as a record has it.
        tested_on: Name of the data to test on.

    Raises:
        UserError: The two overlap.
    """
    if tested_on in OVERLAPS.get(trained_on, ()):
        raise UserError(
            f"a model trained on {trained_on} cannot be tested on {tested_on}: {trained_on} contains official test "
            f"molecules. Train on {tested_on} (experiment=zinc or zinc_full)"
        )


def check_same_data(config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raise UserError if the data of a finished run have changed since.

    Published data are not read again: they do not change, and a sweep checks hundreds of runs. Data that no longer
    exist are not checked either.

    Args:
        config: The run's resolved configuration.
        record: Its result.json.

    Raises:
        UserError: The data are the user's own, and differ from those of the run or cannot be read.
    """
    place = _place(config["data"]) if of_user_data(record) else None
    if place is None or not place.exists():
        return
    name, before, now = record["dataset"]["name"], record["dataset"]["sha256"], _hash(config["data"], place)
    if now != before:
        raise UserError(
            f"{name} has changed since this run was recorded (its hash was {before[:12]}, it is {now[:12]}): set "
            "force=true to run it again, or save the new data under another name to keep both"
        )


def _place(data: Mapping[str, Any]) -> Path | None:
    """The file or folder that a user's data are in, as their data module says; None if it does not."""
    location = getattr(get_object(data["_target_"]), "location", None)
    return None if location is None else Path(location(data))


def _hash(data: Mapping[str, Any], place: Path) -> str:
    """Hash of the data as a run would record it; the cells of a sweep that differ in seed or fold share one reading."""
    # The seed picks one of several masks, which are part of the data.
    varying = ("fold",) if data.get("split") == "masks" else ("seed", "fold")
    kind = {key: value for key, value in data.items() if key not in varying}
    key = json.dumps([kind, place.stat().st_mtime_ns, place.stat().st_size], sort_keys=True)
    if key not in _HASHES or place.is_dir():  # a folder keeps its time when a file in it changes
        from hydra.utils import instantiate  # late: torch and the data's libraries take seconds

        try:
            module = instantiate(data)
            module.setup("fit")
        except Exception as error:
            raise UserError(f"the data of this finished run cannot be read any more: {unwrapped(error)}") from error
        _HASHES[key] = module.describe()["sha256"]
    return _HASHES[key]
