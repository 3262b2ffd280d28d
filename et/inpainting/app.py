"""A page to play with an image model: python -m et.inpainting.app [--run pretrained] [--port 7860]

Choose a photograph or load one, hide and show patches by clicking on them, complete it, and go through the descent: the
completion, all decoded tokens, the updates of both modules, their energies, and whom a patch attends to. The page is
served to this machine alone and loads nothing from elsewhere.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from et.core.precision import CPU_HAS_BFLOAT16
from et.inpainting.analysis import Trajectory, attention_of, follow
from et.inpainting.canvas import make_canvas
from et.inpainting.complete import EMBEDDED
from et.inpainting.figures import as_image, new_figure
from et.inpainting.folders import to_rgb, upright
from et.inpainting.patches import fill, hide, patchify, unpatchify
from et.inpainting.photos import load_photo
from et.inpainting.pixels import to_pixels
from et.inpainting.scores import masked_mse
from et.training.cli import exit_on_user_error
from et.utils.errors import UserError

try:
    import gradio as gr
except ImportError:  # the extra `app` is not installed; :func:`application` says so
    gr = None

DISPLAYED = 448  # pixels of the longer side on the page, at least
ATTENTION_FROM = 0.25  # brightness of a patch that is attended to least
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"  # the browser asks no other address
HIDE, LOOK = "hides or shows it", "shows whom it attends to"


@dataclass(frozen=True)
class Scene:
    """What a visitor looks at.

    Attributes:
        image: (1, C, H, W), normalised.
        masked: (1, N) bool.
        seen: The descent; None until it is computed, and after the mask has changed.
        patch: The patch whose attention is shown.
    """

    image: Tensor
    masked: Tensor
    seen: Trajectory | None = None
    patch: int = 0


class Viewer:
    """Scenes of one network, and what is shown of them as arrays (H, W, 3) of uint8."""

    def __init__(self, network: torch.nn.Module):
        if not hasattr(network, "trajectory"):
            raise UserError("the app shows the descent of an image Energy Transformer, and this run is none")
        self.network = network

    def open(self, photograph: str | Image.Image, ratio: float, seed: int) -> Scene:
        """A photograph, embedded or loaded, cropped to the model's size, with a random mask."""
        embedded = isinstance(photograph, str)
        image = Image.fromarray(load_photo(photograph)) if embedded else to_rgb(upright(photograph))
        canvas = make_canvas("photograph", image, self.network, ratio=ratio, seed=seed)
        return Scene(canvas.tiles, canvas.masked, patch=self._central(canvas.masked[0]))

    def _central(self, masked: Tensor) -> int:
        """The hidden patch next to the centre."""
        rows, columns = self.network.grid
        hidden = masked.nonzero()[:, 0]
        distance = (hidden // columns - rows / 2).abs() + (hidden % columns - columns / 2).abs()
        return int(hidden[distance.argmin()])

    def patch_at(self, x: int, y: int) -> int:
        """Index of the patch under a pixel of what :meth:`masked` returns."""
        (height, width), (rows, columns) = self.network.patch_size, self.network.grid
        row, column = y // (height * self.scale), x // (width * self.scale)
        return min(row, rows - 1) * columns + min(column, columns - 1)

    @property
    def scale(self) -> int:
        return max(1, -(-DISPLAYED // max(self.network.image_size)))

    def toggle(self, scene: Scene, patch: int) -> Scene:
        """The scene with a patch hidden that was shown, or the other way round; its descent is forgotten."""
        masked = scene.masked.clone()
        masked[0, patch] ^= True
        return replace(scene, masked=masked, seen=None, patch=patch)

    def descend(self, scene: Scene, steps: int) -> Scene:
        """The scene with its descent over ``steps`` steps."""
        with torch.autocast("cpu", torch.bfloat16, enabled=CPU_HAS_BFLOAT16):
            return replace(scene, seen=follow(self.network, scene.image, scene.masked, steps))

    def masked(self, scene: Scene) -> np.ndarray:
        """The photograph with its hidden patches grey, the chosen patch framed."""
        pixels = hide(to_pixels(scene.image), scene.masked, self.network.patch_size)[0]
        return self._framed(self._enlarged(pixels), scene.patch)

    def panels(self, scene: Scene, step: int) -> dict[str, np.ndarray]:
        """The completion, the decoded tokens and both updates at a step; a module's updates share one scale."""
        seen, size = scene.seen, self.network.patch_size
        completed = fill(scene.image, seen.tokens[step], scene.masked, size)
        shown = {"completion": to_pixels(completed)[0]}
        parts = {"tokens": seen.tokens, "attention": seen.attention, "hopfield": seen.hopfield}
        for name, values in parts.items():
            if values is None:
                continue
            pixels = unpatchify(values[step], size, self.network.image_size)[0]
            shown[name] = to_pixels(pixels) if name == "tokens" else 0.5 + 0.5 * pixels / _range(values)
        return {name: self._enlarged(pixels) for name, pixels in shown.items()}

    def attention(self, scene: Scene, step: int, head: int | None) -> tuple[np.ndarray, float]:
        """The completion, brighter where the chosen patch attends to, and the share that goes to CLS.

        Args:
            scene: With its descent.
            step: Of the descent.
            head: Index of a head. If None, the mean over all.
        """
        rows = attention_of(self.network, scene.seen.g[step, 0], scene.patch)  # (H, 1 + N)
        weights = rows.mean(0) if head is None else rows[head]
        light = ATTENTION_FROM + (1 - ATTENTION_FROM) * weights[1:] / weights[1:].max()
        pixels = fill(scene.image, scene.seen.tokens[step], scene.masked, self.network.patch_size)
        patches = patchify(to_pixels(pixels), self.network.patch_size) * light[:, None]
        lit = unpatchify(patches, self.network.patch_size, self.network.image_size)[0]
        return self._framed(self._enlarged(lit), scene.patch), float(weights[0])

    def error(self, scene: Scene, step: int) -> float:
        """Mean squared error over the hidden patches, pixels normalised."""
        target = patchify(scene.image, self.network.patch_size)
        return float(masked_mse(scene.seen.tokens[step], target, scene.masked))

    def _enlarged(self, pixels: Tensor) -> np.ndarray:
        array = (as_image(pixels) * 255).round().astype(np.uint8)
        return array.repeat(self.scale, 0).repeat(self.scale, 1)

    def _framed(self, array: np.ndarray, patch: int, colour: tuple[int, int, int] = (255, 60, 0)) -> np.ndarray:
        row, column = divmod(patch, self.network.grid[1])
        height, width = (side * self.scale for side in self.network.patch_size)
        inside = array[row * height + 2 : (row + 1) * height - 2, column * width + 2 : (column + 1) * width - 2].copy()
        array[row * height : (row + 1) * height, column * width : (column + 1) * width] = colour
        array[row * height + 2 : (row + 1) * height - 2, column * width + 2 : (column + 1) * width - 2] = inside
        return array


def _range(values: Tensor) -> float:
    """What is drawn as black and white: the 99th percentile of the sizes, of every 17th value."""
    return max(float(torch.quantile(values.abs().flatten()[::17], 0.99)), 1e-12)


def draw_energies(seen: Trajectory, step: int) -> Any:
    """The energies of both modules and of the block against the step, which is marked."""
    figure = new_figure(9, 2.4)
    parts = {"total": seen.energies, "attention": seen.attention_energies, "Hopfield": seen.hopfield_energies}
    for axis, (name, energies) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        axis.plot(energies[:, 0], marker=".", linewidth=1)
        axis.plot(step, float(energies[step, 0]), "o", color="C1")
        axis.set(title=f"{name}: {float(energies[step, 0]):.4g}", xlabel="step t")
        axis.grid(alpha=0.3)
    return figure


def build(viewer: Viewer) -> Any:
    """The page, a ``gradio.Blocks``."""
    network = viewer.network
    heads = ["all heads", *(f"head {head + 1}" for head in range(network.block.attention.num_heads))]
    with gr.Blocks(title="Energy Transformer") as page:
        scene, seed = gr.State(time_to_live=3600), gr.State(0)
        gr.Markdown("## Energy Transformer: a photograph completed by the descent of an energy")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                name = gr.Dropdown(list(EMBEDDED), value=EMBEDDED[0], label="photograph", elem_id="name")
                own = gr.Image(label="or your own", type="pil", sources=["upload"], height=110, elem_id="own")
                ratio = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="share of hidden patches")
                again = gr.Button("Another random mask", elem_id="again")
                steps = gr.Radio([network.steps * k for k in (1, 2, 4)], value=network.steps, label="steps in all")
            with gr.Column(scale=3, min_width=300):
                photo = gr.Image(label="click on a patch", interactive=False, buttons=[], elem_id="photo")
                click = gr.Radio([HIDE, LOOK], value=HIDE, label="a click on a patch", elem_id="click")
                go = gr.Button("Complete", variant="primary", elem_id="go")
            with gr.Column(scale=3, min_width=300):
                completion = gr.Image(label="completion", interactive=False, buttons=[], elem_id="completion")
                step = gr.Slider(0, network.steps, network.steps, step=1, label="step t", elem_id="step")
                said = gr.Markdown(elem_id="said")
        with gr.Row():
            panels = {
                key: gr.Image(label=label, interactive=False, buttons=[], min_width=200, elem_id=key)
                for key, label in (
                    ("tokens", "all tokens, decoded"),
                    ("attention", "update of the attention"),
                    ("hopfield", "update of the Hopfield network"),
                )
            }
            with gr.Column(min_width=200):
                looks = gr.Image(
                    label="whom the framed patch attends to", interactive=False, buttons=[], elem_id="looks"
                )
                head = gr.Dropdown(heads, value=heads[0], label="head", elem_id="head")
        energies = gr.Plot(label="energies", format="png", elem_id="energies")
        views = [photo, completion, *panels.values(), looks, energies, said]

        def show(scene: Scene, step: int, head: str) -> list[Any]:
            if scene.seen is None:
                return [viewer.masked(scene), *[None] * (len(views) - 2), "The mask has changed: press *Complete*."]
            step = min(int(step), len(scene.seen.tokens) - 1)
            shown = viewer.panels(scene, step)
            lit, cls = viewer.attention(scene, step, None if head == heads[0] else heads.index(head) - 1)
            text = f"Step {step}: mean squared error on {int(scene.masked.sum())} hidden patches "
            text += f"**{viewer.error(scene, step):.3f}**. CLS gets {cls:.1%} of the framed patch's attention."
            pictures = [shown.get(key) for key in ("completion", *panels)]
            return [viewer.masked(scene), *pictures, lit, draw_energies(scene.seen, step), text]

        def opened(name: str, own: Image.Image | None, ratio: float, seed: int, steps: int, head: str) -> list[Any]:
            scene = viewer.descend(viewer.open(name if own is None else own, ratio, seed), int(steps))
            return [scene, *show(scene, steps, head), gr.update(maximum=steps, value=steps)]

        def completed(scene: Scene, steps: int, head: str) -> list[Any]:
            scene = viewer.descend(scene, int(steps))
            return [scene, *show(scene, steps, head), gr.update(maximum=steps, value=steps)]

        def clicked(scene: Scene, does: str, step: int, head: str, event: gr.SelectData) -> list[Any]:
            patch = viewer.patch_at(*event.index)
            scene = viewer.toggle(scene, patch) if does == HIDE else replace(scene, patch=patch)
            return [scene, *show(scene, step, head)]

        source, everything = [name, own, ratio, seed, steps, head], [scene, *views, step]
        for happens in (page.load, name.input, own.upload, own.clear, ratio.release):
            happens(opened, source, everything)
        again.click(lambda seed: seed + 1, seed, seed).then(opened, source, everything)
        go.click(completed, [scene, steps, head], everything)
        steps.input(completed, [scene, steps, head], everything)
        photo.select(clicked, [scene, click, step, head], [scene, *views])
        for happens in (step.input, head.input):
            happens(show, [scene, step, head], views, show_progress="hidden", trigger_mode="always_last")
    return page


def serve(viewer: Viewer, port: int) -> None:
    """Serve the page on 127.0.0.1 until interrupted."""
    import uvicorn

    print(f"http://127.0.0.1:{port}", flush=True)
    uvicorn.run(application(viewer), host="127.0.0.1", port=port, log_level="warning")


def application(viewer: Viewer) -> Any:
    """The page as a FastAPI application whose fonts and scripts are its own.

    Raises:
        UserError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if gr is None:
        raise UserError("the app needs Gradio: pip install -e '.[app]'")
    from fastapi import FastAPI

    app = FastAPI()

    @app.middleware("http")
    async def stay_here(request: Any, answer: Any) -> Any:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(app, build(viewer), path="/", theme=theme, ssr_mode=False, footer_links=[])


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the app from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="pretrained", help="run folder or checkpoint; default: the authors' weights")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)

    def run() -> None:
        from et.runs.loading import load_run

        serve(Viewer(load_run(options.run)[1]), options.port)

    exit_on_user_error(run)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
