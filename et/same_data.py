"""Whether a finished run is of the data that lie there today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from et.errors import UserError
from et.record import USER_DATA


def of_user_data(record: Mapping[str, Any]) -> bool:
    """Whether a run's data are the user's own, which may change under the same name."""
    return str(record["dataset"].get("variant")).startswith(USER_DATA)


def check_same_data(config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuse to take a finished run for one of data that have changed since.

    Published data are not read again for this: they keep their contents, and a sweep looks at hundreds of runs.

    Args:
        config: the run's resolved configuration.
        record: its result.json.

    Raises:
        UserError: the data are the user's own, and have other contents than the run was recorded with.
    """
    if not of_user_data(record):
        return
    from hydra.utils import instantiate  # late: torch and the data's libraries take seconds

    data = instantiate(config["data"])
    data.setup()
    before, now = record["dataset"], data.describe()
    if now["sha256"] != before["sha256"]:
        raise UserError(
            f"{before['name']} has changed since this run was recorded (its hash was {before['sha256'][:12]}, it is "
            f"{now['sha256'][:12]}): set force=true to run it again, or give the new data another name to keep both"
        )
