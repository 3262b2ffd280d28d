"""What synthetic run folders hold beside their record: metrics.csv and a recorded descent."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image


def write_metrics(folder: Path, steps: int) -> None:
    """A metrics.csv with a loss at every step, a validation score at every second and a test score at the last."""
    lines = ["step,lr,train/loss,val/f1_macro,val/once,test/f1_macro"]
    for step in range(steps):
        score = "" if step % 2 else f"{0.5 + 0.1 * step / 2}"
        lines.append(
            f"{step},0.001,{1 / (1 + step)},{score},{1 if step == 0 else ''},{0.9 if step == steps - 1 else ''}"
        )
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_descent(folder: Path, place: str = "pictures", steps: int = 4, name: str = "chelsea") -> Path:
    """A descent.json with pictures that turn from dark to light and energies that fall."""
    (folder / place / "descent").mkdir(parents=True, exist_ok=True)
    names = [f"descent/0_t{t:02d}.webp" for t in range(steps + 1)]
    for t, frame in enumerate(names):
        Image.new("RGB", (60, 40), (30 * t, 20, 90)).save(folder / place / frame)
    for still, colour in (("masked", "grey"), ("original", "teal")):
        Image.new("RGB", (60, 40), colour).save(folder / place / f"descent/0_{still}.webp")
    picture = {
        "name": name, "height": 40, "width": 60, "windows": 6, "frames": names, "masked": "descent/0_masked.webp",
        "original": "descent/0_original.webp", "attention": [-10.0 - 2 * t for t in range(steps + 1)],
        "hopfield": [-5.0 - t * t for t in range(steps + 1)], "mse_masked": [1 / (1 + t) for t in range(steps + 1)],
    }  # fmt: skip
    path = folder / place / "descent.json"
    path.write_text(json.dumps({"trained_steps": steps, "step_size": 0.1, "pictures": [picture]}))
    return path
