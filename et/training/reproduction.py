"""python train.py --from-run PATH: run a recorded run again and say whether its metrics come out the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from et.runs.foreign import read_config, trusted
from et.runs.identity import claimed_key, config_of, differences
from et.runs.loading import list_runs
from et.runs.record import LATER_KEYS, load_record, run_id
from et.utils.errors import UserError
from et.utils.paths import CONF

# Metrics within this of each other agree: what another machine, or another number of threads, may change.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Comparison:
    """A recorded run and its repetition.

    Attributes:
        metrics: name -> (recorded, repeated); None where one of the two lacks it.
        circumstances: What else differs, such as a library's version: name -> (recorded, repeated).
        folder: The repetition's run folder.
    """

    metrics: Mapping[str, tuple[float | None, float | None]]
    circumstances: Mapping[str, tuple[Any, Any]]
    folder: Path

    @property
    def equal(self) -> bool:
        """Whether every metric is the same number."""
        return all(metrics_agree(*pair, tolerance=0.0) for pair in self.metrics.values())

    @property
    def agrees(self) -> bool:
        """Whether every metric is the same within :data:`TOLERANCE`, relative or absolute."""
        return not self.beyond(TOLERANCE)

    @property
    def same_machine(self) -> bool:
        """Whether both ran with the same libraries on the same known kind of machine, so that every digit repeats."""
        return not any(name == "device" or name.startswith(("versions.", "machine.")) for name in self.circumstances)

    def beyond(self, tolerance: float) -> dict[str, tuple[float | None, float | None]]:
        """The metrics that differ by more than ``tolerance``, relative and absolute, or that one of the two lacks."""
        return {name: pair for name, pair in self.metrics.items() if not metrics_agree(*pair, tolerance=tolerance)}


def metrics_agree(recorded: float | None, repeated: float | None, tolerance: float) -> bool:
    """Whether two values of a metric agree; NaN agrees with NaN, and a metric that the record lacks with any value."""
    if recorded is None:  # newer code measures more
        return True
    if repeated is None:
        return False
    if math.isnan(recorded) or math.isnan(repeated):
        return math.isnan(recorded) and math.isnan(repeated)
    return recorded == repeated or math.isclose(recorded, repeated, rel_tol=tolerance, abs_tol=tolerance)


def recorded_run(path: Path) -> tuple[dict[str, Any], DictConfig]:
    """Record and configuration of a run: its folder, or a result.json alone.

    Beside a result.json without config.yaml, today's configuration files must give the recorded run id.

    Raises:
        UserError: There is not a complete record, or no configuration that belongs to it.
    """
    file = path / "result.json" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"{file} is not the record of a finished run: there is no such file{list_runs(path)}")
    record = load_record(file)
    saved = file.parent / "config.yaml"
    if saved.exists():
        cfg = read_config(saved)
    else:
        key = claimed_key(record, record["dataset"].get("fold"), str(file))
        cfg = trusted(config_of(key.overrides(), str(file)), f"the configuration of {file}")
    found = run_id(OmegaConf.to_container(cfg, resolve=True))
    if found != record["run_id"]:
        other = f"{saved} is that of" if saved.exists() else "today's configuration files give"
        raise UserError(
            f"{file} is the record of run {record['run_id']}, but {other} run {found}: they do not belong together"
        )
    return record, cfg


def repeat(path: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Run a recorded run again; the repetition of runs/EXPERIMENT/RUN_ID goes to runs-repeated/EXPERIMENT/RUN_ID.

    Args:
        path: A run's folder or its result.json.
        overrides: KEY=VALUE for what has no part in a run's id: paths, hardware, loggers, progress.

    Raises:
        UserError: No such run, or an override that would make it another run.
    """
    record, cfg = recorded_run(path)
    before = OmegaConf.to_container(cfg, resolve=True)
    home = (path if path.is_dir() else path.parent).resolve()
    # Beside the folder of all runs, not in it: the tables collect whatever lies in there.
    runs = home.parents[1] if home.name == record["run_id"] else home
    cfg.paths.runs = f"{runs}-repeated"
    try:
        for override in overrides:
            key, _, text = override.partition("=")
            value = OmegaConf.create(f"value: {text}").value
            if key == "logger":  # names of files, as on the command line of train.py
                names = [value] if isinstance(value, str) else value
                value = OmegaConf.merge(*(OmegaConf.load(CONF / "logger" / f"{name}.yaml") for name in names))
            OmegaConf.update(cfg, key.lstrip("+"), value, force_add=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{override}: {error}") from error
    changed = differences(before, OmegaConf.to_container(cfg, resolve=True))
    if changed:
        raise UserError(f"{', '.join(changed)}: that would be another run; only paths and hardware can be changed")
    return compare_repetition(record, cfg)


def compare_repetition(record: Mapping[str, Any], cfg: DictConfig) -> Comparison:
    """Train ``cfg`` anew, in its ``paths.runs``, and compare the outcome with ``record``, which is of the same run."""
    from et.training.run import train

    cfg.force = True
    outcome = train(cfg)
    names = sorted({*record["metrics"], *outcome.record["metrics"]})
    metrics = {name: (record["metrics"].get(name), outcome.record["metrics"].get(name)) for name in names}
    return Comparison(metrics, circumstances(record, outcome.record), outcome.folder)


def circumstances(record: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two records of one run differ in, beside times and metrics: data, code, versions, machine."""
    names = ("device", "git_commit", "num_params", "epochs", *(key for key in LATER_KEYS if key != "machine"))
    pairs = {name: (record.get(name), again.get(name)) for name in names}
    for section in ("versions", "dataset", "machine"):
        one, other = record.get(section, {}), again.get(section, {})
        pairs |= {f"{section}.{n}": (one.get(n), other.get(n)) for n in sorted({*one, *other})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
