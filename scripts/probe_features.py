"""How well frozen tokens tell the ten classes of Imagenette apart, as docs/explanation/features.md reports.

python scripts/probe_features.py OUTPUT --cache FOLDER: extract the tokens of the published weights and of the same
network untrained after some steps of the descent, fit a linear probe and k nearest neighbours to them, and write
features.json and features.png to OUTPUT. The photographs are those of <data root>/imagenette at 224 x 224, no patch
hidden. FOLDER keeps extracted features: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from et.core import descend
from et.inpainting.complete import has_fast_bf16
from et.inpainting.figures import new_figure
from et.inpainting.folders import ImageFolders, open_image
from et.inpainting.model import InpaintingET
from et.inpainting.patches import patchify
from et.integrations.pretrained import load_pretrained
from et.runs.record import git_commit, machine, versions
from et.utils.errors import exit_on_user_error
from et.utils.files import replacing, write_atomically

STEPS = (0, 1, 2, 4, 8, 12)
POOLS = ("patches", "cls")  # mean over the patch tokens; the CLS token
FORMS = ("raw", "normalised")  # tokens x, and g = LayerNorm(x)
CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths of the probe's regularisation
KS = (1, 5, 10, 20, 50)
SEED = 0  # of the untrained weights, the order of the photographs, the split and the bootstrap
CHUNK = 20  # photographs in a file of the cache


@torch.no_grad()
def pooled_tokens(network: InpaintingET, images: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """Features of images after each of ``steps``, (B, steps, pools, forms, D) float32; no patch is hidden."""
    masked = torch.zeros(len(images), network.num_patches, dtype=torch.bool)
    x, taken, found = network.embed(patchify(images, network.patch_size), masked), 0, []
    for step in steps:
        x, taken = descend(network.block, x, step - taken, network.step_size).x.float(), step
        forms = [torch.stack([t[:, 1:].mean(1), t[:, 0]], 1) for t in (x, network.block.norm(x))]  # (B, pools, D)
        found.append(torch.stack(forms, 2))
    return torch.stack(found, 1).float()


def raw_patches(images: torch.Tensor, patch_size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Features without a network: the mean patch, (B, P), and the mean colour of every patch, (B, N * C)."""
    patches = patchify(images, patch_size)
    colours = patches.unflatten(-1, (images.shape[1], -1)).mean(-1)
    return {"mean patch": patches.mean(1), "patch colours": colours.flatten(1)}


class Photographs:
    """Training and evaluation photographs in a fixed random order, of which the first few are used.

    Args:
        root: A folder with train and val, and in them a folder for each class.
        image_size: Height and width; images are resized and cropped as for evaluation.
    """

    def __init__(self, root: Path, image_size: tuple[int, int]):
        self.source = ImageFolders(
            str(root),
            image_size,
            name="imagenette",
            expected=(9469, 3925),
            address="https://github.com/fastai/imagenette",
        )
        found = {"train": self.source.train_files, "val": self.source.eval_files}
        rng = np.random.default_rng(SEED)
        self.files = {part: [files[i] for i in rng.permutation(len(files))] for part, files in found.items()}
        classes = sorted({path.parent.name for path in found["train"]})
        self.labels = {p: np.array([classes.index(f.parent.name) for f in files]) for p, files in self.files.items()}

    def images(self, part: str, start: int, end: int) -> torch.Tensor:
        """Photographs ``start`` to ``end`` of a part, (B, 3, H, W), normalised."""
        return torch.stack([self.source.eval_transform(open_image(path)) for path in self.files[part][start:end]])


def extract(
    photographs: Photographs, part: str, count: int, name: str, features: Callable[[torch.Tensor], Any], cache: Path
) -> list[dict[str, np.ndarray]]:
    """Features of the first ``count`` photographs of a part, in chunks; those that ``cache`` holds are read from it."""
    found = []
    for start in range(0, count, CHUNK):
        end = min(count, start + CHUNK)
        listed = "".join(
            f"{path.parent.name}/{path.name} {path.stat().st_size}\n" for path in photographs.files[part][start:end]
        )
        path = cache / f"{name}-{part}-{start}-{hashlib.sha256(listed.encode()).hexdigest()[:12]}.npz"
        if not path.exists():
            values = {key: value.numpy() for key, value in features(photographs.images(part, start, end)).items()}
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as fresh:
                np.savez(fresh, **values)
            print(f"{name} {part} {end}/{count}", file=sys.stderr, flush=True)
        with np.load(path) as arrays:
            found.append(dict(arrays))
    return found


def joined(chunks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of several chunks, one after another."""
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def classifiers() -> dict[str, dict[str, Any]]:
    """The classifiers of each method, by the value that is chosen on validation photographs."""
    return {
        "linear probe": {
            f"C = {c:g}": make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200, tol=1e-3)) for c in CS
        },
        "k-NN": {f"k = {k}": make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(k)) for k in KS},
    }  # fmt: skip


def scored(
    train: dict[str, np.ndarray], train_labels: np.ndarray, test: dict[str, np.ndarray], test_labels: np.ndarray
) -> list[dict[str, Any]]:
    """Accuracy of both classifiers, in percent, with the form of the features and the setting chosen on validation.

    Args:
        train: Forms of the training features, (photographs, D) each. A fifth of them are the validation photographs;
            the chosen classifier is fitted again to all.
        train_labels, test_labels: Classes, (photographs,).
        test: Forms of the evaluation features.

    Returns:
        A row for each method; ``low`` and ``high`` are the 95 % bootstrap interval over evaluation photographs.
    """
    fitted, held = train_test_split(
        np.arange(len(train_labels)), test_size=0.2, random_state=SEED, stratify=train_labels
    )
    rows = []
    for method, settings in classifiers().items():
        chosen: tuple[float, str, str] = (-1.0, "", "")
        for form, values in train.items():
            for setting, classifier in settings.items():
                if classifier[-1].get_params().get("n_neighbors", 1) > len(fitted):
                    continue
                classifier.fit(values[fitted], train_labels[fitted])
                accuracy = float((classifier.predict(values[held]) == train_labels[held]).mean())
                chosen = max(chosen, (accuracy, form, setting), key=lambda found: found[0])
        accuracy, form, setting = chosen
        right = settings[setting].fit(train[form], train_labels).predict(test[form]) == test_labels
        drawn = np.random.default_rng(SEED).integers(len(right), size=(2000, len(right)))
        low, high = np.percentile(right[drawn].mean(1), (2.5, 97.5))
        numbers = {"accuracy": right.mean(), "low": low, "high": high, "validation": accuracy}
        percent = {key: round(100 * float(value), 2) for key, value in numbers.items()}
        rows.append({"method": method, **percent, "form": form, "setting": setting})
    return rows


def probe(
    photographs: Photographs, networks: dict[str, InpaintingET], counts: dict[str, int], cache: Path, bf16: bool
) -> list[dict[str, Any]]:
    """Rows of accuracies: of every network after every number of steps, and of features without a network."""

    def of_network(network: InpaintingET) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        def features(images: torch.Tensor) -> dict[str, torch.Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return {"tokens": pooled_tokens(network, images, STEPS)}

        return features

    patch_size = next(iter(networks.values())).patch_size
    sources = {"raw": lambda images: raw_patches(images, patch_size), **{n: of_network(e) for n, e in networks.items()}}
    labels = {part: photographs.labels[part][:count] for part, count in counts.items()}
    rows = []
    for name, features in sources.items():
        parts = {
            part: joined(extract(photographs, part, count, f"{name}-{'bf16' if bf16 else 'fp32'}", features, cache))
            for part, count in counts.items()
        }
        for about, forms in _views(parts):
            found = scored(forms["train"], labels["train"], forms["val"], labels["val"])
            rows += [{"features": name, **about, **row} for row in found]
            print(*(f"{name} {about} {row['method']} {row['accuracy']}" for row in found), sep="\n", flush=True)
    return rows


def _views(parts: dict[str, dict[str, np.ndarray]]) -> list[tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]]:
    """What the rows are of: a description, and by part the forms of the features."""
    if "tokens" not in parts["train"]:
        return [({"pool": key}, {p: {"raw": arrays[key]} for p, arrays in parts.items()}) for key in parts["train"]]
    return [
        (
            {"step": step, "pool": pool},
            {p: {f: a["tokens"][:, s, i, j] for j, f in enumerate(FORMS)} for p, a in parts.items()},
        )
        for s, step in enumerate(STEPS)
        for i, pool in enumerate(POOLS)
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against the step, a panel for each method."""
    figure = new_figure(9, 3.6)
    for axis, method in zip(figure.subplots(1, 2, sharey=True), classifiers(), strict=True):
        own = [row for row in rows if row["method"] == method]
        for color, name in (("C0", "trained"), ("C1", "untrained")):
            for style, pool in (("o-", "patches"), ("s--", "cls")):
                line = [row for row in own if (row["features"], row["pool"]) == (name, pool)]
                steps, values = [row["step"] for row in line], [row["accuracy"] for row in line]
                spread = np.abs(np.array([[row["low"], row["high"]] for row in line]).T - np.array(values))
                label = f"{name}, {'mean of patches' if pool == 'patches' else 'CLS'}"
                axis.errorbar(steps, values, spread, fmt=style, color=color, label=label, capsize=2)
        for style, row in zip((":", "-."), (row for row in own if row["features"] == "raw"), strict=True):
            axis.axhline(row["accuracy"], color="grey", linestyle=style, label=f"raw, {row['pool']}")
        axis.set(title=method, xlabel="step", xticks=STEPS)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy, %")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def untrained(like: InpaintingET) -> InpaintingET:
    """``like`` with new initial weights."""
    torch.manual_seed(SEED)
    like.reset_parameters()
    return like


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps extracted features")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ET_DATA_DIR", "data")) / "imagenette")
    parser.add_argument("--train", type=int, default=3000, help="training photographs; default: 3000")
    parser.add_argument("--eval", type=int, default=1000, help="evaluation photographs; default: 1000")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # validation chooses among what the iterations reach
    networks = {"trained": load_pretrained(), "untrained": untrained(load_pretrained())}
    photographs = Photographs(options.data, networks["trained"].image_size)
    found = {part: len(files) for part, files in photographs.files.items()}
    counts = {"train": min(options.train, found["train"]), "val": min(options.eval, found["val"])}
    bf16 = has_fast_bf16("cpu")
    rows = probe(photographs, networks, counts, options.cache, bf16)
    about = {
        "command": "python scripts/probe_features.py OUTPUT --cache FOLDER "
        f"--train {counts['train']} --eval {counts['val']}",
        "data": photographs.source.describe(), "photographs": counts, "seed": SEED, "bf16": bf16,
        "git_commit": git_commit(), "machine": machine(torch.get_num_threads()), "versions": versions(),
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output / "features.json", json.dumps({**about, "rows": rows}, indent=1) + "\n")
    draw(rows, options.output / "features.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    exit_on_user_error(main)
