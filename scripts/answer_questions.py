"""Measure what docs/explanation/questions.md reports: python scripts/answer_questions.py REAL_RUN QUESTION_RUNS OUTPUT

REAL_RUN is a finished run of experiment=imagenette_inpainting, QUESTION_RUNS the folder of the short trainings
(paths.runs of the commands in docs/explanation/questions.md). OUTPUT gets questions.json and the figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from et.core import descend
from et.core.descent import speed
from et.inpainting.analysis import Convergence, converge
from et.inpainting.data import evaluation_batch
from et.inpainting.figures import draw_convergence, new_figure
from et.inpainting.lit import masked_mse
from et.inpainting.model import InpaintingET
from et.inpainting.patches import patchify
from et.runs.loading import find_run, load_run
from et.runs.record import read_result
from et.training.cli import exit_on_user_error
from et.utils.errors import UserError

Batch = dict[str, Tensor]
SOURCE = ("experiment", "seed", "git_commit", "device", "versions")  # of a record: what its numbers can be traced by


def examples(cfg: Any, count: int) -> Batch:
    """``count`` evaluation images of a run, spread over all of them, with their first masks."""
    data = instantiate(cfg.data)
    indices = torch.linspace(0, data.source.eval_length - 1, min(count, data.source.eval_length)).long().tolist()
    return evaluation_batch(data, indices)


@torch.no_grad()
def error_after(network: InpaintingET, batch: Batch, steps: int, step_size: float) -> float:
    """MSE on the masked patches after ``steps`` steps of ``step_size``."""
    target = patchify(batch["image"], network.patch_size)
    x = descend(network.block, network.embed(target, batch["masked"]), steps, step_size).x
    return float(masked_mse(network.decode(x[:, 1:]), target, batch["masked"]).mean())


def finer_steps(network: InpaintingET, batch: Batch) -> list[dict[str, float]]:
    """The same total time T alpha in fewer or more steps than in training."""
    total = network.steps * network.step_size
    counts = [max(1, network.steps // 2), network.steps, 2 * network.steps, 4 * network.steps, 10 * network.steps]
    return [{"steps": n, "step_size": total / n, "mse": error_after(network, batch, n, total / n)} for n in counts]


@torch.no_grad()
def other_starts(network: InpaintingET, batch: Batch, steps: int, sizes: tuple[float, ...]) -> list[dict[str, float]]:
    """Masked tokens displaced at the start by Gaussian noise of so many times their own root mean square.

    ``apart_at_T`` and ``apart_at_end``: root mean square distance of the masked tokens' g to those of the undisturbed
    descent after T and after ``steps`` steps, beside the same at the start; 2**0.5 would be unrelated states.
    """
    target, masked = patchify(batch["image"], network.patch_size), batch["masked"]
    start = network.embed(target, masked)
    hidden = torch.cat([torch.zeros_like(masked[:, :1]), masked], dim=1)

    def states(tokens: Tensor) -> list[Tensor]:
        middle = descend(network.block, tokens, network.steps, network.step_size).x
        end = descend(network.block, middle, steps - network.steps, network.step_size).x
        return [tokens, middle, end]

    plain, norm = states(start), network.block.norm
    found = []
    for size in sizes:
        torch.manual_seed(0)
        noise = torch.randn_like(start) * size * start[hidden].square().mean().sqrt() * hidden[..., None]
        other = states(start + noise)
        pairs = [(norm(a)[hidden], norm(b)[hidden]) for a, b in zip(other, plain, strict=True)]
        apart = [(a - b).square().mean().sqrt() / b.std() for a, b in pairs]
        mse = masked_mse(network.decode(other[1][:, 1:]), target, masked).mean()
        names = ("apart_at_start", "apart_at_T", "apart_at_end")
        found.append({"noise": size, **dict(zip(names, map(float, apart), strict=True)), "mse_at_T": float(mse)})
    return found


@torch.no_grad()
def rest(network: InpaintingET, batch: Batch, most: int, tolerances: tuple[float, ...]) -> list[dict[str, float]]:
    """Steps until an image's fastest token moves no faster than each tolerance, and how many images ever do."""
    tokens = network.embed(patchify(batch["image"], network.patch_size), batch["masked"])
    found = []
    for tolerance in tolerances:
        result = descend(network.block, tokens, most, network.step_size, tol=tolerance)
        after = descend(network.block, result.x, 1, network.step_size)
        still = speed(network.block.norm(result.x), network.block.norm(after.x), network.step_size)
        arrived = result.steps < most
        steps = result.steps[arrived].float()
        found.append(
            {
                "tolerance": tolerance,
                "arrived": float(arrived.float().mean()),
                "largest_speed_after": float(still.max()),
            }
            | ({"median_steps": float(steps.median()), "slowest": float(steps.max())} if arrived.any() else {})
        )
    return found


def without_second_term(network: InpaintingET, batch: Batch, steps: int) -> dict[str, Convergence]:
    """The trained network with its own update, and with the attention's second term dropped at inference only."""
    found = {"both terms": converge(network, batch["image"], batch["masked"], steps)}
    terms, network.block.attention.terms = network.block.attention.terms, "query"
    found["first term only"] = converge(network, batch["image"], batch["masked"], steps)
    network.block.attention.terms = terms
    return found


def summary(found: Convergence, trained_steps: int) -> dict[str, float]:
    """Error at T, the smallest error and its step, and how often the energy rose: up to T and after it."""
    mse, rises = found.mse.mean(1), (found.energies.diff(dim=0) > 0).float()
    return {
        "mse_at_T": float(mse[trained_steps]), "best_mse": float(mse.min()), "best_step": int(mse.argmin()),
        "mse_at_end": float(mse[-1]), "rises_until_T": float(rises[:trained_steps].mean()),
        "rises_after_T": float(rises[trained_steps:].mean()), "speed_at_end": float(found.speed[-1].mean()),
    }  # fmt: skip


def trainings(folder: Path, steps: int, count: int) -> list[dict[str, Any]]:
    """Every short training: what sets it apart, its test error, and its descent past T on held-out windows."""
    found = []
    for path in sorted(folder.glob("questions*/*/result.json")):
        record, (cfg, network) = read_result(path.parent), load_run(path.parent)
        batch = examples(cfg, count)
        curve = converge(network, batch["image"], batch["masked"], max(steps, 2 * network.steps))
        found.append(
            {
                "run": record["run_id"], **{key: record[key] for key in SOURCE},
                "steps": cfg.model.steps, "step_size": cfg.model.step_size, "schedule": cfg.model.step_schedule,
                "terms": cfg.model.block.get("attention_terms", "both"),
                "beta": cfg.model.block.get("beta"), "weight_decay": cfg.optim.optimizer.weight_decay,
                "mse": record["metrics"]["test/mse_masked"], "mean_fill": record["metrics"]["test/mse_mean_fill"],
                "seconds": record["seconds"], **summary(curve, network.steps), "curve": curve.mse.mean(1).tolist(),
                "learned": network.step_sizes(network.steps).tolist() if cfg.model.step_schedule == "learned" else None,
            }
        )  # fmt: skip
        print(f"{record['experiment']} {record['run_id']}", flush=True)
    if not found:
        commands = "docs/explanation/questions.md has the commands"
        raise UserError(f"{folder} holds no finished run of experiment=questions; {commands}")
    return sorted(found, key=lambda run: (run["terms"], run["schedule"], run["step_size"], run["steps"]))


def draw_depths(runs: list[dict[str, Any]], path: Path) -> None:
    """Error against the step at inference, a line for each T of training (dots)."""
    plain = [r for r in runs if r["terms"] == "both" and r["schedule"] == "constant" and r["step_size"] == 1.0]
    plain = [r for r in plain if r["beta"] is None and r["weight_decay"] == 0.05]
    figure = new_figure(6.5, 3.6)
    axis = figure.subplots()
    for number, run in enumerate(sorted(plain, key=lambda run: run["steps"])):
        axis.plot(run["curve"], color=f"C{number}", label=f"trained with T = {run['steps']}")
        axis.plot(run["steps"], run["curve"][run["steps"]], "o", color=f"C{number}")
    axis.axhline(runs[0]["mean_fill"], color="grey", linestyle="--", label="mean colour")
    axis.set(xlabel="steps at inference", ylabel="MSE on masked patches", ylim=(0, 1.2))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_terms(found: dict[str, Convergence], trained_steps: int, path: Path) -> None:
    """Energy and error with and without the attention's second term."""
    figure = new_figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    for name, curve in found.items():
        left.plot(curve.energies.mean(1), label=name)
        right.plot(curve.mse.mean(1), label=name)
    for axis, title in ((left, "energy"), (right, "MSE on masked patches")):
        axis.axvline(trained_steps, color="grey", linestyle="--")
        axis.set(title=title, xlabel="step t")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def answer(real: Path, folder: Path, output: Path, count: int = 60) -> dict[str, Any]:
    """Everything; see the module's text.

    Raises:
        UserError: a run is missing.
    """
    output.mkdir(parents=True, exist_ok=True)
    run = find_run(real)
    cfg, network = load_run(run)
    batch, record = examples(cfg, count), read_result(run) or {}
    steps = 16 * network.steps
    curve = converge(network, batch["image"], batch["masked"], steps)
    draw_convergence(curve, network.steps, output / "questions_rest.png")
    terms = without_second_term(network, batch, steps)
    draw_terms(terms, network.steps, output / "questions_terms.png")
    short = trainings(folder, 48, count)
    draw_depths(short, output / "questions_depth.png")
    found = {
        "real": {
            "run": record.get("run_id", run.name), **{key: record.get(key) for key in SOURCE},
            "images": len(batch["image"]), "T": network.steps,
        },
        "descent": summary(curve, network.steps),
        "rest": rest(network, batch, 50 * network.steps, (0.1, 0.03, 0.01)),
        "finer_steps": finer_steps(network, batch),
        "other_starts": other_starts(network, batch, steps, (0.1, 0.3, 1.0, 3.0)),
        "second_term": {name: summary(c, network.steps) for name, c in terms.items()},
        "trainings": [{key: value for key, value in r.items() if key != "curve"} for r in short],
    }  # fmt: skip
    (output / "questions.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(exit_on_user_error(lambda: answer(options.real, options.questions, options.output)), indent=1))
