"""Error against the number of steps, for several shares of hidden patches: docs/explanation/fixed_points.md.

python scripts/compare_descents.py OUTPUT RUN [RUN ...]: follow the descent of every run, far past its T, on the same
evaluation images and masks. A run is a folder or ``pretrained``. OUTPUT gets fixed_points.json and fixed_points.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from et.inpainting.complete import has_fast_bf16
from et.inpainting.data import evaluation_batch
from et.inpainting.figures import new_figure
from et.inpainting.questions import Batch, descend_past, photographs
from et.runs.loading import find_run, is_pretrained, load_run
from et.runs.record import git_commit, machine, read_result, versions
from et.utils.errors import exit_on_user_error
from et.utils.files import write_atomically

RATIOS = (0.1, 0.25, 0.5, 0.75)
SOURCE = ("experiment", "run_id", "seed", "git_commit", "device", "seconds", "steps")  # of a record


def examples(cfg: DictConfig, count: int, ratio: float) -> Batch:
    """``count`` evaluation images of a run, spread over all of them, with a share ``ratio`` of their patches hidden."""
    section = OmegaConf.to_container(cfg.data, resolve=True)
    patches = instantiate(section).num_patches
    data = instantiate({**section, "num_occluded": max(1, round(ratio * patches)), "num_kept": 0})
    length = data.source.eval_length
    return evaluation_batch(data, torch.linspace(0, length - 1, min(count, length)).long().tolist())


def flatness(curve: list[float], trained_steps: int) -> dict[str, float]:
    """What a curve of errors after 0, 1, ... steps says of rest.

    Args:
        curve: Errors.
        trained_steps: T.

    Returns:
        The smallest error and its step, the errors at T and at the end, and ``excess``: how far the largest error from
        T on lies above the smallest one of all, as a share of it.
    """
    best = min(curve)
    return {
        "mse_at_T": curve[trained_steps], "best_mse": best, "best_step": curve.index(best), "mse_at_end": curve[-1],
        "excess": max(curve[trained_steps:]) / best - 1,
    }  # fmt: skip


def follow(run: str, steps: int, count: int, images: Path | None, bf16: bool) -> dict[str, Any]:
    """The curves of one run, by the share of hidden patches, and what it was trained with."""
    cfg, network = load_run(find_run(Path(run)))
    record = {} if is_pretrained(run) else read_result(find_run(Path(run))) or {}
    on_photographs = images is not None or is_pretrained(run)
    data, task = cfg.data, cfg.task
    found: dict[str, Any] = {
        "name": "pretrained" if is_pretrained(run) else cfg.name, **{key: record.get(key) for key in SOURCE},
        "test_mse": record.get("metrics", {}).get("test/mse"),
        "T": network.steps, "step_size": network.step_size, "steps_range": OmegaConf.to_object(task).get("steps_range"),
        "occluded_range": OmegaConf.to_object(data).get("occluded_range"),
        "from_weights": OmegaConf.to_object(task).get("init_weights") is not None, "curves": [],
        "occluded": (data.get("num_occluded") or round(network.num_patches * 100 / 196)) / network.num_patches,
    }  # fmt: skip
    for ratio in RATIOS:
        batch = photographs(network, count, images, ratio) if on_photographs else examples(cfg, count, ratio)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and on_photographs):
            errors = descend_past(network, batch, max(steps, network.steps))[0].mse.mean(1)
        curve = [float(f"{value:.4g}") for value in errors.tolist()]
        shares = {"ratio": ratio, "hidden": float(batch["masked"].float().mean()), "images": len(batch["image"])}
        found["curves"].append({**shares, **flatness(curve, network.steps), "mse": curve})
    print(*(f"{found['name']} {c['hidden']:.0%}: T {c['mse_at_T']}, excess {c['excess']:.0%}" for c in found["curves"]))
    return found


def title(run: dict[str, Any]) -> str:
    """How a run is called in the figure."""
    varies = run["steps_range"] or run["occluded_range"]
    trained = "T varies" if varies else f"T = {run['T']}, {run['occluded']:.0%} occluded"
    return f"{run['name']}, {trained}" + (", from weights" if run["from_weights"] else "")


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """A panel for every share of hidden patches, a line for every run, a dot at its T."""
    figure = new_figure(10, 6)
    for number, axis in enumerate(figure.subplots(2, 2, sharex=True).flat):
        for index, run in enumerate(runs):
            curve = run["curves"][number]
            varies = bool(run["steps_range"])
            axis.plot(curve["mse"], color=f"C{index}", linewidth=2 if varies else 1, label=title(run))
            axis.plot(run["T"], curve["mse_at_T"], "o", color=f"C{index}")
        axis.set(
            title=f"{runs[0]['curves'][number]['hidden']:.0%} of the patches hidden", ylabel="MSE on hidden patches"
        )
        axis.set_ylim(0, 4 * min(run["curves"][number]["best_mse"] for run in runs))
        axis.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    for axis in figure.axes[2:]:
        axis.set_xlabel("steps")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", nargs="+", help="folders of runs, or pretrained")
    parser.add_argument("--images", type=Path, help="folder of photographs; default: the evaluation images of each run")
    parser.add_argument("--count", type=int, default=60, help="images; default: 60")
    parser.add_argument("--steps", type=int, default=64, help="steps that are followed; default: 64")
    options = parser.parse_args()
    bf16 = has_fast_bf16("cpu")
    runs = [follow(run, options.steps, options.count, options.images, bf16) for run in options.runs]
    about = {
        "command": f"python scripts/compare_descents.py OUTPUT RUN ... --count {options.count} --steps {options.steps}",
        "git_commit": git_commit(), "machine": machine(torch.get_num_threads()), "versions": versions(),
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output / "fixed_points.json", json.dumps({**about, "runs": runs}, indent=1) + "\n")
    draw(runs, options.output / "fixed_points.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    exit_on_user_error(main)
