"""Complete photographs with a trained image model.

Photographs are fitted to the model. --fit crop resizes until the shorter side is the model's (224 pixels) and cuts out
the centre; --fit tile keeps every pixel and completes tiles of that size one by one.

The output folder (completed/NAME) gets scores.csv with one row a photograph, overview.png and energies.png. Each
photograph gets masked.png, completed.png, original.png, the descent as an animation (descent.webp), and the energies of
both modules at every step (energies.csv, energies.png): in a folder of its own, if there are several.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from et.core import Descent
from et.inpainting.canvas import Canvas, make_canvas
from et.inpainting.fill_baselines import mean_fill, nearest_fill
from et.inpainting.folders import EXTENSIONS, list_images, open_image
from et.inpainting.lit import InpaintingTask
from et.inpainting.patches import hide, patchify
from et.inpainting.photos import load_photo
from et.inpainting.pixels import from_pixels, to_pixels
from et.inpainting.scores import image_scores, masked_mse
from et.inpainting.trajectories import follow, over_patches, picture_record, save, write_descent
from et.utils.errors import UserError, exit_on_user_error
from et.utils.paths import command

EMBEDDED = ("chelsea", "flower", "astronaut", "coffee", "china", "rocket", "motorcycle_left", "hubble_deep_field")
WIDEST_ANIMATION = 768  # pixels of the longer side


@dataclass(frozen=True)
class Completion:
    """A completed photograph.

    Attributes:
        canvas: The photograph and its mask.
        frames: The picture at every step, (T + 1, C, H, W) in 0 .. 1.
        attention, hopfield: Energies of the two modules at every step, (T + 1, K) for K tiles.
        errors: Mean squared error over the hidden patches of each tile, (T + 1, K), pixels normalised.
    """

    canvas: Canvas
    frames: Tensor
    attention: Tensor
    hopfield: Tensor
    errors: Tensor

    @property
    def original(self) -> Tensor:
        """(C, H, W) in 0 .. 1."""
        return self.canvas.join(to_pixels(self.canvas.tiles))

    def masked(self, patch_size: tuple[int, int]) -> Tensor:
        """The photograph with its hidden patches grey, (C, H, W) in 0 .. 1."""
        return self.canvas.join(hide(to_pixels(self.canvas.tiles), self.canvas.masked, patch_size))


def complete_all(
    network: torch.nn.Module, canvases: Iterator[Canvas], batch_size: int = 16, bf16: bool = False
) -> Iterator[Completion]:
    """Complete photographs, their tiles in batches across photographs.

    Args:
        network: An image Energy Transformer in evaluation mode.
        canvases: The photographs; they are read as they are needed.
        batch_size: Tiles at once.
        bf16: Whether matrix products are computed in bfloat16; energies stay in float32.
    """
    waiting: list[Canvas] = []
    for canvas in canvases:
        waiting.append(canvas)
        if sum(len(c.tiles) for c in waiting) >= batch_size:
            yield from _complete(network, waiting, batch_size, bf16)
            waiting = []
    if waiting:
        yield from _complete(network, waiting, batch_size, bf16)


def _complete(
    network: torch.nn.Module, canvases: Sequence[Canvas], batch_size: int, bf16: bool
) -> Iterator[Completion]:
    batch = {"image": torch.cat([c.tiles for c in canvases]), "masked": torch.cat([c.masked for c in canvases])}
    with torch.autocast(next(network.parameters()).device.type, torch.bfloat16, enabled=bf16):
        parts = list(follow(network, batch, None, batch_size))
    frames, *numbers = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    start = 0
    for canvas in canvases:
        own = slice(start, start + len(canvas.tiles))
        joined = torch.stack([canvas.join(frame[own]) for frame in frames])
        yield Completion(canvas, joined, *(values[:, own].float() for values in numbers))
        start = own.stop


def has_fast_bf16(device: str) -> bool:
    """Whether bfloat16 is computed by the hardware, and not by imitation."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def scores_of(network: torch.nn.Module, completion: Completion) -> dict[str, float]:
    """Error over the hidden patches beside those of the two trivial fillings, and PSNR and SSIM of the whole picture.

    The errors are in normalised units, PSNR (dB) and SSIM on pixels from 0 to 1.
    """
    canvas = completion.canvas
    target, masked = patchify(canvas.tiles, network.patch_size), canvas.masked
    fillings = {
        "mse_mean_fill": mean_fill(target, masked, network.channels),
        "mse_nearest_fill": nearest_fill(target, masked, network.grid),
    }
    errors = {name: masked_mse(filled, target, masked) for name, filled in fillings.items()}
    errors = {"mse_masked": completion.errors[-1], **errors}
    found = {name: float(over_patches(error[None], masked)) for name, error in errors.items()}
    whole = image_scores(*(from_pixels(pixels)[None] for pixels in (completion.frames[-1], completion.original)))
    share = float(masked.sum() / np.prod([ceil(a / b) for a, b in zip(canvas.size, network.patch_size, strict=True)]))
    return {"hidden": share, **found, **{name: float(whole[name]) for name in ("psnr", "ssim", "ssim_interior")}}


def write_completion(completion: Completion, folder: Path, patch_size: tuple[int, int]) -> None:
    """Write a photograph's pictures, animation and energies into ``folder``."""
    from et.inpainting.figures import animate
    from et.inpainting.pictures import draw_energies

    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "masked": completion.masked(patch_size), "completed": completion.frames[-1], "original": completion.original,
    }  # fmt: skip
    for name, pixels in pictures.items():
        save(pixels, folder / f"{name}.png")
    animate(*_small(completion), folder / "descent.webp", scale=1)
    energies = completion.attention, completion.hopfield
    total, attention, hopfield = (values.mean(1).tolist() for values in (sum(energies), *energies))
    with (folder / "energies.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "total", "attention", "hopfield", "mse_masked"])
        errors = over_patches(completion.errors, completion.canvas.masked).tolist()
        writer.writerows(zip(range(len(total)), total, attention, hopfield, errors, strict=True))
    descent = Descent(torch.empty(0), sum(energies), *energies)
    draw_energies(descent, folder / "energies.png", completion.canvas.name, "tiles")


def _small(completion: Completion) -> tuple[Tensor, Tensor]:
    """Frames (T + 1, 1, C, h, w) and the original (1, C, h, w), no larger than an animation should be."""
    frames, original = completion.frames, completion.original[None]
    scale = WIDEST_ANIMATION / max(frames.shape[-2:])
    if scale < 1:
        shrink = torch.nn.functional.interpolate
        frames, original = (
            shrink(pixels, scale_factor=scale, mode="bilinear", antialias=True) for pixels in (frames, original)
        )
    return frames[:, None], original


def inputs_of(paths: Sequence[str], embedded: bool) -> dict[str, Path | None]:
    """What is to be completed: name of its output -> image file, None for a photograph that ships with scikit-image.

    Raises:
        UserError: There is nothing, or no such file.
    """
    if embedded:
        return dict.fromkeys(EMBEDDED)
    found: dict[str, Path | None] = {}
    for given in map(Path, paths):
        if not given.exists():
            raise UserError(f"there is no photograph or folder {given}")
        for path in [given] if given.is_file() else list_images(given).files:
            name = path.stem if given.is_file() else str(path.relative_to(given).with_suffix(""))
            while name in found:  # of one stem: photo.jpg and photo.png
                name = f"{name}_{path.suffix[1:]}"
            found[name] = path
    if not found:
        raise UserError(f"name a photograph or a folder of photographs ({', '.join(sorted(EXTENSIONS))})")
    return found


def default_output(first: str, inputs: dict[str, Path | None]) -> Path:
    """Where completions go unless the user says: completed/NAME, with a hash if other photographs' are there."""
    name = Path(first).resolve().stem
    output, (own, *_) = Path("completed") / name, inputs.values()
    try:
        with (output / "scores.csv").open() as file:
            there = next(csv.DictReader(file))["file"]
    except (OSError, StopIteration, KeyError):
        return output
    if Path(there).resolve() == Path(own or "").resolve():
        return output
    return output.with_name(f"{name}-{hashlib.sha256(str(Path(first).resolve()).encode()).hexdigest()[:6]}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("complete"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO_OR_FOLDER")
    add("--embedded", action="store_true", help="photographs that ship inside scikit-image and scikit-learn")
    add("--run", default="pretrained", help="run folder or checkpoint; default: the authors' ImageNet weights")
    add("--mask", default="random", help="random patches, a centred block, or a mask image (white is hidden)")
    add("--ratio", type=float, default=0.5, help="share of the patches that random and block hide; default: 0.5")
    add(
        "--fit", choices=("crop", "tile"), default="crop", help="centre crop of the model's size, or tiles of the whole"
    )
    add("--seed", type=int, default=0, help="of random masks")
    add("--output", type=Path, help="default: completed/NAME, of the first photograph or folder")
    add("--batch-size", type=int, default=16)
    add("--precision", choices=("auto", "32", "bf16"), default="auto", help="auto: bf16 where the hardware has it")
    add("--scores-only", action="store_true", help="write no folder for each photograph")
    add("--report", action="store_true", help="also record four descents for the report page (--descents OUTPUT)")
    add("--if-available", action="store_true", help="without the weights, say so in one line and succeed")
    options = parser.parse_args(arguments)
    if not 0 < options.ratio <= 1:
        parser.error("--ratio must be above 0 and at most 1")
    if options.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    return options


def run(options: argparse.Namespace) -> None:
    """Complete what ``options`` name and say what came of it."""
    from et.runs.loading import load_run

    inputs = inputs_of(options.photos, options.embedded)
    try:
        _, network = load_run(options.run)
    except UserError as error:
        if not options.if_available:
            raise
        print(f"The pretrained model is left out: {error}")
        return
    if not hasattr(network, "trajectory"):
        raise UserError(f"{options.run} is not an image Energy Transformer")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    bf16 = options.precision == "bf16" or (options.precision == "auto" and has_fast_bf16(device))
    output = options.output or default_output("embedded" if options.embedded else options.photos[0], inputs)
    rows = _write_all(network, inputs, options, bf16, output)
    _say(rows, output, network, options, bf16)


def _write_all(
    network: torch.nn.Module, inputs: dict[str, Path | None], options: argparse.Namespace, bf16: bool, output: Path
) -> list[dict[str, object]]:
    from rich.progress import track

    from et.inpainting.pictures import draw_completions, draw_energies

    def canvases() -> Iterator[Canvas]:
        for number, (name, path) in enumerate(inputs.items()):
            image = Image.fromarray(load_photo(name)) if path is None else open_image(path)
            yield make_canvas(name, image, network, options.mask, options.ratio, options.fit, options.seed + number)

    output.mkdir(parents=True, exist_ok=True)
    rows, overview, recorded, energies = [], {"masked": [], "completed": [], "original": []}, [], []
    completions = complete_all(network, canvases(), options.batch_size, bf16)
    for number, completion in enumerate(track(completions, "completing", len(inputs), transient=True)):
        canvas = completion.canvas
        rows.append({"name": canvas.name, "file": str(inputs[canvas.name] or ""), **scores_of(network, completion)})
        masked = completion.masked(network.patch_size)
        energies.append(torch.stack([completion.attention, completion.hopfield]).mean(2))
        if number < 8:
            for label, pixels in zip(overview, (masked, completion.frames[-1], completion.original), strict=True):
                overview[label].append(pixels)
        if not options.scores_only:
            folder = output / canvas.name if len(inputs) > 1 else output
            write_completion(completion, folder, network.patch_size)
        if options.report and number < 4:
            stills = {"masked": masked, "original": completion.original}
            numbers = completion.attention, completion.hopfield, over_patches(completion.errors, canvas.masked)
            folder = output / "pictures"
            recorded.append(picture_record(number, canvas.name, completion.frames, stills, *numbers, folder))
    draw_completions(overview, output / "overview.png")
    if len(inputs) > 1 or options.scores_only:
        attention, hopfield = torch.stack(energies, dim=-1)
        draw_energies(Descent(torch.empty(0), attention + hopfield, attention, hopfield), output / "energies.png")
    if recorded:
        write_descent(network, recorded, output / "pictures", f"{options.run} weights")
    with (output / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _say(
    rows: Sequence[dict[str, object]], output: Path, network: torch.nn.Module, options: argparse.Namespace, bf16: bool
) -> None:
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name.startswith("mse")}
    height, width = network.image_size
    fitted = {"crop": f"cropped to {height} x {width}", "tile": f"in tiles of {height} x {width}"}[options.fit]
    hidden = sum(row["hidden"] for row in rows) / len(rows)
    plural = "photograph" if len(rows) == 1 else "photographs"
    print(
        f"{len(rows)} {plural} {fitted}, {hidden:.0%} of the patches hidden, {'bfloat16' if bf16 else 'float32'}. "
        + str(InpaintingTask.summary({"metrics": {f"test/{name}": value for name, value in means.items()}}))
    )
    print(output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Complete photographs from the command line."""
    options = parse(arguments)
    exit_on_user_error(lambda: run(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
