"""Whether the image pipeline feeds the step: images a second from the loader, and what a training step waits for it.

    python scripts/bench_data.py                       # on photographs of ImageNet's size, made from skimage's
    python scripts/bench_data.py --images FOLDER       # on FOLDER/train and FOLDER/val

The loader decodes, crops and augments to 224 x 224 as table 4 has it and draws masks. First it runs alone; then two
loader processes feed forward and backward of ET-Base in batches, and the share of time that the step waits is reported.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from et.inpainting.data import InpaintingData
from et.inpainting.folders import ImageFolders
from et.inpainting.model import InpaintingET
from et.inpainting.patches import patchify

PHOTOGRAPHS = 200
AUGMENTATION = {"hflip": 0.5, "color_jitter": 0.4, "auto_augment": None, "scale": (0.08, 1.0)}


def write_photographs(root: Path, count: int) -> None:
    """JPEGs of 500 x 375 pixels, ImageNet's usual size, from the photographs that ship with skimage."""
    from skimage import data

    photographs = [getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        (root / part).mkdir()
        for number in range(count if part == "train" else 1):
            image = Image.fromarray(photographs[number % len(photographs)])
            left, top = (int(rng.integers(side // 4)) for side in image.size)
            image = image.crop((left, top, left + image.width * 3 // 4, top + image.height * 3 // 4))
            image.resize((500, 375), Image.Resampling.BICUBIC).save(root / part / f"{number}.jpg", quality=90)


def loader(root: Path, batch: int, workers: int):
    source = ImageFolders(root, 224, augmentation=AUGMENTATION)
    return InpaintingData(source, 224, 16, batch_size=batch, num_workers=workers).train_dataloader()


def images_per_second(root: Path, batch: int, workers: int, seconds: float) -> float:
    """Rate of the loader alone, its start not counted."""
    count, batches, start = 0, iter(()), time.perf_counter()
    feeder = loader(root, batch, workers)
    while time.perf_counter() - start < seconds or not count:
        found = next(batches, None)
        if found is None:
            batches = iter(feeder)
            next(batches)  # the first batch of an epoch pays for the processes
            start = time.perf_counter() if not count else start
            continue
        count += len(found["image"])
    return count / (time.perf_counter() - start)


def waiting(root: Path, batch: int, workers: int, steps: int) -> tuple[float, float]:
    """Median seconds of a training step of ET-Base, and of its wait for the batch."""
    model, waits, times = InpaintingET(), [], []
    batches = iter(loader(root, batch, workers))
    for _ in range(steps + 1):
        start = time.perf_counter()
        found = next(batches)
        ready = time.perf_counter()
        model.zero_grad()
        error = model(found["image"], found["masked"]) - patchify(found["image"], model.patch_size)
        error.square()[found["occluded"]].mean().backward()
        waits.append(ready - start)
        times.append(time.perf_counter() - ready)
    return float(np.median(times[1:])), float(np.median(waits[1:]))  # the first pays for the processes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each rate is measured")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        root = options.images or Path(made)
        if options.images is None:
            write_photographs(root, max(PHOTOGRAPHS, options.batch * (options.steps + 2)))
        for workers in (0, 2):
            rate = images_per_second(root, options.batch, workers, options.seconds)
            print(f"loader alone, {workers} worker processes: {rate:.0f} images/s", flush=True)
        step, wait = waiting(root, options.batch, 2, options.steps)
        print(
            f"ET-Base, batch {options.batch}, {torch.get_num_threads()} threads, 2 worker processes: step {step:.2f} s "
            f"and waits {1000 * wait:.1f} ms for its batch ({100 * wait / (wait + step):.2f} % of the time)"
        )


if __name__ == "__main__":
    main()
