"""Measure what docs/explanation/questions.md reports.

python scripts/answer_questions.py pretrained OUTPUT: the authors' published weights, on photographs. OUTPUT gets
questions_pretrained.json and the figures.

python scripts/answer_questions.py RUN OUTPUT --trainings FOLDER: RUN is a finished run of
experiment=imagenette_inpainting, FOLDER that of the short trainings (paths.runs of the commands on that page).
OUTPUT gets questions.json and the figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from et.inpainting.analysis import Convergence, converge
from et.inpainting.complete import has_fast_bf16
from et.inpainting.data import evaluation_batch
from et.inpainting.figures import draw_convergence, new_figure
from et.inpainting.questions import (
    Batch,
    chosen_starts,
    descend_past,
    error_after,
    finer_steps,
    only_term,
    other_starts,
    photographs,
    rest,
    scored,
    summary,
    without_heads,
    without_second_term,
)
from et.integrations.pretrained import load_pretrained
from et.runs.loading import find_run, is_pretrained, load_run
from et.runs.record import git_commit, machine, read_result, versions
from et.utils.errors import UserError, exit_on_user_error
from et.utils.files import write_atomically

RATIOS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
SIZES = (112, 160, 224, 288, 336)  # pixels a side
NOISE = (0.0, 0.1, 0.3, 1.0)
TOLERANCES = (1.0, 0.3, 0.1, 0.03, 0.01)
SHOWN = (0, 4, 12, 24, 60, 240)  # steps whose completions are drawn
SOURCE = ("experiment", "seed", "git_commit", "device", "versions")  # of a record: what its numbers can be traced by


def examples(cfg: Any, count: int) -> Batch:
    """``count`` evaluation images of a run, spread over all of them, with their first masks."""
    data = instantiate(cfg.data)
    indices = torch.linspace(0, data.source.eval_length - 1, min(count, data.source.eval_length)).long().tolist()
    return evaluation_batch(data, indices)


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


def answer_pretrained(output: Path, count: int = 8, images: Path | None = None, past: int = 20) -> dict[str, Any]:
    """The questions that need no training, asked of the published weights; the file is renewed after each answer.

    Matrix products are in bfloat16 where the hardware has it; tokens, layer norms and energies are in float32. Long
    descents are of half of the photographs.

    Args:
        output: Folder of questions_pretrained.json and the figures.
        count: How many photographs.
        images: Their folder; None takes those that ship inside scikit-image and scikit-learn.
        past: The descent is followed for so many times T steps.
    """
    output.mkdir(parents=True, exist_ok=True)
    network = load_pretrained()
    batch = photographs(network, count, images)
    half = {key: values[::2] for key, values in batch.items()}
    bf16 = has_fast_bf16("cpu")
    found: dict[str, Any] = {
        "model": {
            "run": "pretrained", "photographs": len(batch["image"]), "images": images.name if images else "embedded",
            "hidden": float(batch["masked"].float().mean()), "T": network.steps, "step_size": network.step_size,
            "bf16": bf16, "git_commit": git_commit(), "machine": machine(torch.get_num_threads()),
            "versions": versions(),
        }
    }  # fmt: skip

    def keep(name: str, value: Any) -> None:
        found[name] = value
        write_atomically(output / "questions_pretrained.json", json.dumps(found, indent=1) + "\n")
        print(name, flush=True)

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
        keep("trained_descent", scored(network, batch))
        keep("mask_ratio", [{"ratio": r, **scored(network, photographs(network, count, images, r))} for r in RATIOS])
        keep("image_size", [at_size(size, count, images) for size in SIZES])
        keep("heads", without_heads(network, batch))
        steps, size = network.steps, network.step_size
        torch.manual_seed(0)
        keep("noise", [{"noise_std": std, "mse": error_after(network, batch, steps, size, std)} for std in NOISE])
        keep("chosen_starts", chosen_starts(network, batch))
        keep("finer_steps", finer_steps(network, batch))
        with only_term(network, "query"):
            dropped, _ = descend_past(network, half, 4 * steps)
        keep("first_term_only", {"photographs": len(half["image"]), **summary(dropped, steps), **curves(dropped)})
        keep("other_starts", other_starts(network, batch, 4 * steps, (0.1, 0.3, 1.0)))
        shown = [step for step in SHOWN if step <= past * steps]
        curve, pictures = descend_past(network, half, past * steps, shown)
    numbers = {**summary(curve, steps), **curves(curve), "rest": arrivals(curve)}
    keep("descent", {"photographs": len(half["image"]), **numbers})
    draw_past(pictures, output / "questions_pretrained_past.jpg")
    draw_pretrained(found, output)
    return found


def at_size(size: int, count: int, images: Path | None) -> dict[str, float]:
    """Scores with images of ``size`` x ``size`` pixels, the position biases resized."""
    network = load_pretrained(image_size=size)
    return {"size": size, "patches": network.num_patches, **scored(network, photographs(network, count, images))}


def curves(found: Convergence) -> dict[str, list[float]]:
    """Means over the images at every step, four digits each."""
    named = {"speed": found.speed, "energy": found.energies, "mse": found.mse}
    return {name: [float(f"{value:.4g}") for value in values.mean(1).tolist()] for name, values in named.items()}


def arrivals(found: Convergence) -> list[dict[str, float]]:
    """Steps until an image's fastest token moves no faster than each tolerance: the share that does, and the median."""
    rows = []
    for tolerance in TOLERANCES:
        steps = found.steps_to(tolerance)
        arrived = steps[steps >= 0]
        median = {"median_steps": float(arrived.float().median())} if len(arrived) else {}
        rows.append({"tolerance": tolerance, "arrived": len(arrived) / len(steps), **median})
    return rows


def draw_past(pictures: dict[int, Tensor], path: Path, count: int = 4) -> None:
    """The completions of ``count`` photographs along a long descent."""
    figure = new_figure(1.7 * len(pictures), 1.75 * count)
    axes = figure.subplots(count, len(pictures), squeeze=False)
    for column, (step, pixels) in enumerate(pictures.items()):
        for row, axis in enumerate(axes[:, column]):
            axis.set(xticks=[], yticks=[])
            if row < len(pixels):
                axis.imshow(pixels[row].permute(1, 2, 0).clamp(0, 1).numpy())
        axes[0, column].set_title(f"t = {step}")
    figure.savefig(path, dpi=90)


def draw_pretrained(found: dict[str, Any], output: Path) -> None:
    """questions_pretrained_descent.png and questions_pretrained.png from the numbers of :func:`answer_pretrained`."""
    trained = found["model"]["T"]
    lines = {"as trained": found["descent"], "second term dropped": found["first_term_only"]}
    figure = new_figure(11, 3.2)
    for axis, (key, title) in zip(
        figure.subplots(1, 3),
        {"energy": "energy", "speed": "speed of the fastest token", "mse": "MSE on hidden patches"}.items(),
        strict=True,
    ):
        for name, numbers in lines.items():
            axis.plot(range(key == "speed", len(numbers["mse"])), numbers[key], label=name)
        axis.axvline(trained, color="grey", linestyle="--", label="T")
        axis.set(title=title, xlabel="step t", xscale="symlog" if key == "mse" else "linear")
        axis.set_xlim(0, None)
        axis.set_yscale("log" if key == "speed" else "linear")
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(output / "questions_pretrained_descent.png", dpi=100)
    figure = new_figure(11, 6)
    axes = figure.subplots(2, 3).flat
    for axis, (key, x, title, label) in zip(
        axes,
        (
            ("mask_ratio", "ratio", "share of hidden patches", "hidden"),
            ("image_size", "size", "image size", "pixels a side"),
            ("finer_steps", "steps", "same total time in other steps", "steps"),
        ),
        strict=False,
    ):
        rows = found[key]
        places = [row[x] for row in rows]
        axis.plot(places, [row["mse"] for row in rows], "o-", label="Energy Transformer")
        if "mse_mean_fill" in rows[0]:
            axis.plot(places, [row["mse_nearest_fill"] for row in rows], ":", label="nearest visible patch")
            axis.plot(places, [row["mse_mean_fill"] for row in rows], "--", color="grey", label="mean colour")
        if key == "mask_ratio":
            axis.legend(fontsize=8)
        axis.set(title=title, xlabel=label, ylabel="MSE on hidden patches", ylim=(0, None))
    draw_bars(axes[3], [(row["without"], row["mse"]) for row in found["heads"]], "left out")
    draw_bars(axes[4], [(row["start"], row["mse_at_T"]) for row in found["chosen_starts"]], "hidden tokens start as")
    draw_bars(axes[5], [(f"noise {row['noise_std']}", row["mse"]) for row in found["noise"]], "noise in each step")
    figure.savefig(output / "questions_pretrained.png", dpi=100)


def draw_bars(axis: Any, rows: list[tuple[str, float]], title: str) -> None:
    """Horizontal bars with their errors; the first row is the reference line."""
    names, values = zip(*rows, strict=True)
    axis.barh(names, values, color=["C1", *["C0"] * (len(rows) - 1)])
    axis.axvline(values[0], color="C1", linewidth=1)
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.set(title=title, xlabel="MSE on hidden patches")


def main() -> dict[str, Any]:
    """Answer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="pretrained, or the folder of a run")
    parser.add_argument("output", type=Path)
    parser.add_argument("--trainings", type=Path, help="folder of the short trainings; not of pretrained")
    parser.add_argument("--images", type=Path, help="folder of photographs for pretrained; default: the embedded ones")
    parser.add_argument("--count", type=int, help="photographs; default: 8 of pretrained, 60 of a run")
    options = parser.parse_args()
    if is_pretrained(options.run):
        return answer_pretrained(options.output, options.count or 8, options.images)
    if options.trainings is None:
        parser.error("--trainings is missing")
    return answer(Path(options.run), options.trainings, options.output, options.count or 60)


if __name__ == "__main__":
    torch.set_num_threads(1)
    exit_on_user_error(main)
