"""A finished run, loaded: where it is, its configuration, its trained network, the class of its task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from et.runs.checkpoint_files import check_place, load_best, load_checkpoint
from et.runs.foreign import read_config, trusted
from et.runs.identity import config_of
from et.runs.record import read_result, run_dir, run_id
from et.utils.errors import UserError, unwrapped

if TYPE_CHECKING:
    from et.training.task import Task

PRETRAINED = "pretrained"  # what names the authors' published weights where a run is asked for


def find_run(path: Path) -> Path:
    """``path`` itself if it is a run, a checkpoint or :data:`PRETRAINED`; of a folder of runs the one started last."""
    if is_pretrained(path) or path.is_file() or (path / "config.yaml").exists():
        return path
    runs = sorted(path.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    trained = [run for run in runs if any(run.parent.glob("checkpoints/*.ckpt"))]  # a dry run leaves no checkpoint
    return (trained or runs)[-1].parent if runs else path


def is_pretrained(run: Path | str) -> bool:
    """Whether ``run`` names the published weights: :data:`PRETRAINED`, unless a file or folder is called so."""
    return str(run) == PRETRAINED and not Path(run).exists()


def output_folder(run: Path | str, kind: str) -> Path:
    """Where output belongs: <run>/<kind>, beside a checkpoint, or <runs>/pretrained/<kind> for published weights."""
    run = Path(run)
    if is_pretrained(run):
        return Path(os.environ.get("ET_RUNS_DIR", "runs")) / PRETRAINED / kind
    return run / kind if run.is_dir() else run.parent / f"{run.stem}_{kind}"


def own_run(*overrides: str) -> Path:
    """The folder of the run that ``python train.py OVERRIDES`` makes, whatever other runs the experiment has.

    Raises:
        UserError: The overrides do not compose.
    """
    config = config_of(overrides)
    return run_dir(config["paths"]["runs"], config["name"], run_id(config))


def load_run(run: Path | str, checkpoint: str | None = None) -> tuple[DictConfig, torch.nn.Module]:
    """Configuration and trained network, in evaluation mode.

    Args:
        run: A run's folder, a converted checkpoint, or the authors' weights: ``pretrained``, or their .npz file.
        checkpoint: ``best`` or ``last`` of a run. If None, the one that the run was tested with.

    Raises:
        UserError: There is none, or its weights do not fit.
    """
    cfg, weights, *_ = load_weights(run, checkpoint)
    network, prefix = instantiate_section(cfg, "model", torch.nn.Module, run), "network."
    fill(network, {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, run)
    return cfg, network.eval()


def instantiate_section(cfg: DictConfig, section: str, kind: type, run: Path | str, **given: Any) -> Any:
    """What a section of a run's configuration describes.

    Args:
        cfg: The configuration.
        section: Name of the section.
        kind: Class that it must be of.
        run: Where the configuration is from, for messages.
        given: Further arguments.

    Raises:
        UserError: It cannot be built, or is of another class.
    """
    target = cfg[section].get("_target_")
    try:
        found = instantiate(cfg[section], **given)
    except Exception as error:
        cause = unwrapped(error)
        if isinstance(cause, UserError):
            raise cause from error
        reason = (str(cause).splitlines() or [""])[0]
        raise UserError(
            f"the configuration of {run} does not build its {section} {target}: {type(cause).__name__}: {reason}"
        ) from error
    if not isinstance(found, kind):
        raise UserError(f"the configuration of {run} has {target} as its {section}, which is not a {kind.__name__}")
    return found


def load_weights(run: Path | str, checkpoint: str | None) -> tuple[DictConfig, dict[str, torch.Tensor], Path, str]:
    """Configuration and weights of a run, where its evaluation belongs, and the file's name.

    Args:
        run, checkpoint: As of :func:`load_run`.

    Both are verified: the configuration may name known classes only (:mod:`et.runs.foreign`), the weights must be as
    they were written and of this run (:mod:`et.runs.checkpoint_files`).

    Raises:
        UserError: Nothing there, nothing that loads as plain tensors, or something that does not belong there.
    """
    if is_pretrained(run):
        return _published(None)
    run = Path(run)
    if run.suffix == ".npz":
        return _published(run)
    if run.is_dir():
        if not (run / "config.yaml").exists():
            raise UserError(f"{run} is not a run folder: it has no config.yaml{list_runs(run)}")
        cfg = read_config(run / "config.yaml")
        path, saved = run_checkpoint(run, cfg, checkpoint)
        return cfg, saved["state_dict"], output_folder(run, "evaluation"), path.name
    if not run.exists():
        raise UserError(f"{run} is neither a run folder nor a converted checkpoint: there is no such file or folder")
    saved = load_checkpoint(run)
    if "config" not in saved:
        raise UserError(f"{run} holds no configuration: name the run's folder, or convert the checkpoint first")
    return trusted(saved["config"], str(run)), saved["state_dict"], output_folder(run, "evaluation"), run.name


def run_checkpoint(run: Path, cfg: DictConfig, checkpoint: str | None) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of the run folder ``run``, and its content.

    Args:
        cfg: The run's configuration.
        checkpoint: ``best`` or ``last``. If None, the one that the run was tested with.

    Raises:
        UserError: It is not there, is damaged, or does not belong to the configuration or the record beside it.
    """
    try:
        identity = run_id(OmegaConf.to_container(cfg, resolve=True))
    except (TypeError, ValueError) as error:
        raise UserError(f"{run / 'config.yaml'} is not the configuration of a run: {error}") from error
    record = read_result(run)
    if record is not None and record["run_id"] != identity:
        raise UserError(f"{run}: config.yaml belongs to run {identity}, result.json to {record['run_id']}")
    record = record or {}
    if checkpoint not in (None, "best", "last"):
        raise UserError(f"checkpoint must be best or last, not {checkpoint!r}")
    nothing_validated = bool(record) and record.get("best_epoch") is None
    wanted = checkpoint or ("best" if cfg.get("checkpoint") == "best" and not nothing_validated else "last")
    path = run / "checkpoints" / f"{wanted}.ckpt"
    if wanted == "best":
        return path, load_best(path.parent, identity, record.get("best_epoch"))
    saved = load_checkpoint(path, owner=identity)
    check_place(path, saved, "global_step", record.get("steps"), "the run ended at")
    return path, saved


def list_runs(folder: Path) -> str:
    """The runs of an experiment's folder, as the end of a message; empty where there are none."""
    lines = []
    for file in sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime):
        try:
            cfg = OmegaConf.to_container(read_config(file), resolve=True)
        except UserError:
            continue
        finished = read_result(file.parent) is not None
        words = [f"{key} {cfg.get(key)}" for key in ("seed", "protocol", "fidelity")]
        fold = cfg["data"].get("fold")
        words += [] if fold is None else [f"fold {fold}"]
        words += [f"{cfg['trainer'].get('max_epochs')} epochs", "finished" if finished else "not finished"]
        lines.append(f"\n  {file.parent}  {', '.join(words)}")
    return f". These runs are in it, the last started last; name one:{''.join(lines)}" if lines else ""


def _published(given: Path | None) -> tuple[DictConfig, dict[str, torch.Tensor], Path, str]:
    """:func:`load_weights` of the published weights, in the file ``given`` or fetched."""
    from et.integrations.official_images import published_config, read_official, state_dict
    from et.integrations.pretrained import find_weights

    path = find_weights(path=given)
    arrays = read_official(path)
    weights = {f"network.{name}": value for name, value in state_dict(arrays).items()}
    output = output_folder(given or PRETRAINED, "evaluation")
    return OmegaConf.create(published_config(arrays)), weights, output, path.name


def initialise(network: torch.nn.Module, source: Path | str) -> None:
    """Start ``network`` from the weights of a run of the same family, its position biases resized to its images.

    Args:
        network: Changed in place.
        source: As ``run`` of :func:`load_run`.

    Raises:
        UserError: There are no such weights, or they do not fit.
    """
    from et.integrations.official_images import resize_positions

    _, weights, *_ = load_weights(find_run(Path(source)), None)
    weights = {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
    grid = getattr(network, "grid", None)
    if grid is not None and "position" in weights:
        weights["position"] = resize_positions(weights["position"], grid)
    fill(network, weights, source)


def fill(module: torch.nn.Module, weights: dict[str, torch.Tensor], run: Path | str) -> None:
    """Load ``weights``, which are those of ``run``, into ``module``.

    Raises:
        UserError: They do not fit.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the configuration of {run}: {error}") from error


def task_class(cfg: DictConfig) -> type[Task]:
    """The class of the task that a configuration names.

    Raises:
        UserError: it is none.
    """
    from et.training.task import Task

    found = get_object(cfg.task._target_)
    if not isinstance(found, type) or not issubclass(found, Task):
        raise UserError(f"task._target_={cfg.task._target_} must derive from et.training.task.Task")
    return found
