"""Fine-tune the published weights to classify photographs, through timm's interface.

python scripts/finetune_classifier.py OUTPUT: DATA (default: <data root>/imagenette) has train/ and val/ with a folder
for each class. OUTPUT gets finetuned.json and the weights, which timm.create_model(..., checkpoint_path=) loads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from sklearn.linear_model import LogisticRegression
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset

import et.integrations.timm  # noqa: F401  (registers the model)
from et.inpainting.complete import has_fast_bf16
from et.runs.record import git_commit, machine, versions
from et.utils.errors import exit_on_user_error
from et.utils.files import write_atomically

PROBE_C = 0.01  # inverse strength of the regularisation of --probe-first


def datasets(root: Path, config: dict[str, Any], counts: dict[str, int], seed: int) -> dict[str, Dataset]:
    """A random choice of the photographs of both parts, transformed as timm does for training and for evaluation."""
    rng, found = np.random.default_rng(seed), {}
    for part, split in (("train", "train"), ("val", "validation")):
        data = create_dataset("", str(root), split=split)
        options = {"color_jitter": None, "scale": (0.5, 1.0)} if part == "train" else {}
        data.transform = create_transform(**config, is_training=part == "train", **options)
        found[part] = Subset(data, rng.permutation(len(data))[: counts[part]].tolist())
    return found


def tokens(model: torch.nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Final tokens, (B, 1 + N, D) float32; the head needs them so, since a probe's logits cancel in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model.forward_features(images).float()


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Dataset, batch_size: int, bf16: bool) -> float:
    """Share of photographs that are put into their class."""
    model.eval()
    right = 0
    for images, labels in DataLoader(data, batch_size):
        right += int((model.forward_head(tokens(model, images, bf16)).argmax(1) == labels).sum())
    return right / len(data)


@torch.no_grad()
def fit_head(model: torch.nn.Module, data: Dataset, batch_size: int, bf16: bool) -> None:
    """Set the head to a linear probe: logistic regression on the pooled tokens of the frozen model."""
    model.eval()
    pooled, classes = [], []
    for images, labels in DataLoader(data, batch_size):
        pooled.append(model.forward_head(tokens(model, images, bf16), pre_logits=True))
        classes.append(labels)
    features = torch.cat(pooled)  # (photographs, D)
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    probe = LogisticRegression(C=PROBE_C, max_iter=1000)
    probe.fit(((features - mean) / scale).numpy(), torch.cat(classes).numpy())
    weight, bias = torch.from_numpy(probe.coef_).float() / scale, torch.from_numpy(probe.intercept_).float()
    if len(weight) == 1:  # of two classes, the logit of the second
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    model.head.weight.copy_(weight)
    model.head.bias.copy_(bias - weight @ mean)


def finetune(model: torch.nn.Module, data: Dataset, options: argparse.Namespace, bf16: bool) -> list[float]:
    """Train ``model`` in place and return the loss of every batch."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=options.lr, weight_decay=0.05)
    loader = DataLoader(data, options.batch_size, shuffle=True, drop_last=True)
    steps, losses = options.epochs * len(loader), []
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(options.epochs):
        for images, labels in loader:
            loss = cross_entropy(model.forward_head(tokens(model, images, bf16)), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        print(f"loss {np.mean(losses[-len(loader) :]):.3f}", flush=True)
    return losses


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune, score, and write the record and the weights."""
    torch.manual_seed(options.seed)
    random.seed(options.seed)  # timm's crops
    classes = len([path for path in (options.data / "train").iterdir() if path.is_dir()])
    model = timm.create_model(
        "et_base_patch16_224", pretrained=not options.scratch, num_classes=classes, global_pool="avg",
        **({"img_size": options.image_size} if options.image_size else {}),
    )  # fmt: skip
    counts = {"train": options.train, "val": options.eval}
    config = resolve_data_config({"input_size": (3, *model.patch_embed.img_size)}, model=model)
    data = datasets(options.data, config, counts, options.seed)
    bf16 = has_fast_bf16("cpu")
    if options.probe_first:
        fit_head(model, data["train"], options.batch_size, bf16)
    before = accuracy(model, data["val"], options.batch_size, bf16)
    start = time.process_time()
    losses = finetune(model, data["train"], options, bf16)
    seconds = time.process_time() - start
    share = accuracy(model, data["val"], options.batch_size, bf16)
    spread = 1.96 * (share * (1 - share) / len(data["val"])) ** 0.5
    found = {
        "accuracy": round(100 * share, 2), "interval": round(100 * spread, 2), "before": round(100 * before, 2),
        "classes": classes, "image_size": list(model.patch_embed.img_size),
        "photographs": {part: len(subset) for part, subset in data.items()}, "from": "scratch" if options.scratch else
        "published weights", "probe_first": options.probe_first, "epochs": options.epochs, "lr": options.lr,
        "batch_size": options.batch_size, "seed": options.seed, "losses": [round(loss, 4) for loss in losses],
        "cpu_seconds": round(seconds, 1), "bf16": bf16,
        "git_commit": git_commit(), "machine": machine(torch.get_num_threads()), "versions": versions(),
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), options.output / "weights.pt")
    write_atomically(options.output / "finetuned.json", json.dumps(found, indent=1) + "\n")
    print(f"accuracy {found['accuracy']} +- {found['interval']} % on {len(data['val'])} photographs")
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ET_DATA_DIR", "data")) / "imagenette")
    parser.add_argument("--train", type=int, default=300, help="training photographs; default: 300")
    parser.add_argument("--eval", type=int, default=300, help="evaluation photographs; default: 300")
    parser.add_argument("--image-size", type=int, help="pixels a side; default: 224, the size of the weights")
    parser.add_argument("--probe-first", action="store_true", help="fit the head to the frozen model before training")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="of the photographs, their crops, the head and the batches")
    parser.add_argument("--scratch", action="store_true", help="without the published weights, for comparison")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    exit_on_user_error(lambda: run(parse()))
