"""Curves, pictures and a recorded descent from a run's folder, prepared for a page."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

# Left by the run itself, by evaluate.py, or by et.results.figures.
PICTURE_FOLDERS = ("pictures", "evaluation", "figures")
PICTURE_TYPES = (".png", ".webp", ".gif")
AS_THEY_ARE = {".webp": "image/webp", ".gif": "image/gif"}  # may move, which another format would lose
DESCENT = "descent.json"
_ENERGIES = ("attention", "hopfield", "mse_masked")

Curve = tuple[list[int], list[float]]  # steps, values


def read_curves(folder: Path, points: int = 60, names: int = 8) -> dict[str, Curve]:
    """Training and validation curves from metrics.csv, by name; empty if the file is absent or damaged.

    A curve with more than ``points`` points is divided into ``points`` intervals; each is represented by its last step
    and its mean. ``train/loss`` comes first; at most ``names`` curves are kept.
    """
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            rows = [(int(row.pop("step")), row) for row in csv.DictReader(file)]
        series: dict[str, list[tuple[int, float]]] = {}
        for step, row in rows:
            for name, text in row.items():
                if text and name.startswith(("train/", "val/")) and math.isfinite(value := float(text)):
                    series.setdefault(name, []).append((step, value))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, csv.Error):  # AttributeError: surplus columns
        return {}
    wanted = sorted((name for name in series if len(series[name]) > 1), key=lambda name: name != "train/loss")
    return {name: _thinned(series[name], points) for name in wanted[:names]}


def _thinned(series: list[tuple[int, float]], points: int) -> Curve:
    count = min(points, len(series))
    edges = [round(index * len(series) / count) for index in range(count + 1)]
    stretches = [series[start:stop] for start, stop in pairwise(edges)]
    means = [sum(value for _, value in stretch) / len(stretch) for stretch in stretches]
    return [stretch[-1][0] for stretch in stretches], [float(f"{mean:.4g}") for mean in means]


def picture_files(folder: Path) -> list[Path]:
    """Pictures and animations that a run or its evaluation wrote."""
    found = [path for name in PICTURE_FOLDERS for path in sorted((folder / name).glob("*"))]
    home = folder.resolve()  # a link to a file elsewhere is not what a run leaves
    return [path for path in found if path.suffix in PICTURE_TYPES and path.resolve().is_relative_to(home)]


def as_data_uri(path: Path, max_width: int = 1400) -> str:
    """A picture as a WebP data URI at most ``max_width`` pixels wide; WebP and GIF files are embedded unchanged.

    Raises:
        OSError: The file is not a picture.
    """
    if path.suffix in AS_THEY_ARE:
        return f"data:{AS_THEY_ARE[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow has errors of all kinds for files that are damaged, or too large
        raise OSError(f"{path} is not a picture: {error}") from error
    if image.width > max_width:
        image = image.resize((max_width, round(image.height * max_width / image.width)))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_descent(folder: Path) -> dict[str, Any] | None:
    """Recorded descent of a run, its pictures as data URIs; None if there is none or it is incomplete."""
    return next(_descents(folder), None)


def _descents(folder: Path) -> Iterator[dict[str, Any]]:
    for place in (folder / name for name in PICTURE_FOLDERS):
        try:
            record = json.loads((place / DESCENT).read_text())
            for picture in record["pictures"]:
                if len({len(picture[key]) for key in ("frames", *_ENERGIES)}) != 1:
                    raise ValueError("a step lacks its picture or its energy")
                for key in ("masked", "original"):
                    picture[key] = as_data_uri(_inside(place, picture[key]))
                picture["frames"] = [as_data_uri(_inside(place, name)) for name in picture["frames"]]
            if record["pictures"] and record["trained_steps"] >= 0 and record["step_size"] > 0:
                yield record
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
            continue


def _inside(folder: Path, name: str) -> Path:
    """``folder / name``.

    Raises:
        ValueError: It leads out of ``folder``, by its name or through a link: a page must not show other files.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} is not in {folder}")
    return path
