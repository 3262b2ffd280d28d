"""metrics.csv: one row a step, kept when a run resumes."""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from et.utils.files import replacing


def read_rows(path: Path) -> dict[int, dict[str, float]]:
    """The numbers of a metrics.csv by step and name.

    Raises:
        OSError, ValueError, KeyError, TypeError, csv.Error: The file is damaged.
    """
    rows = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or ["step"]):
            raise KeyError("step")
        for row in reader:
            step = int(row.pop("step"))
            rows[step] = {name: float(value) for name, value in row.items() if value}
    return rows


class MetricsFile(Logger):
    """Lightning logger that writes one csv file.

    Lightning's own CSVLogger empties its folder when a run starts again. This one keeps what is there; rows of steps
    that a resumed run repeats are dropped first (:meth:`forget_from`). A damaged file is set aside.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = Path(path)
        self.rows: dict[int, dict[str, float]] = {}
        if self.path.exists():
            try:
                self.rows = read_rows(self.path)
            except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
                print(f"warning: {self.path} is damaged ({error}); it is now metrics.damaged.csv, a new one begins")
                with suppress(OSError):
                    self.path.replace(self.path.with_name("metrics.damaged.csv"))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder, where Lightning's profilers write as well."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in config.yaml already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self.rows.setdefault(int(step or 0), {})
        row.update({name: float(value) for name, value in metrics.items()})

    def forget_from(self, step: int) -> None:
        """Drop the rows of ``step`` and later ones: the run is about to repeat them."""
        self.rows = {number: row for number, row in self.rows.items() if number < step}
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the whole table; called by Lightning every now and then and at the end."""
        columns = ["step", *dict.fromkeys(name for row in self.rows.values() for name in row)]
        lines = [columns]
        lines += [[step, *(row.get(name, "") for name in columns[1:])] for step, row in sorted(self.rows.items())]
        with replacing(self.path) as fresh, fresh.open("w", newline="") as file:
            csv.writer(file).writerows(lines)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
