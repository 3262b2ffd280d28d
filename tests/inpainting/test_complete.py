"""python complete.py: photographs of any size, masks, and what is written."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image

from et.inpainting import complete
from et.inpainting.canvas import cut_tiles, fit_image, make_canvas
from et.inpainting.complete import complete_all, inputs_of, scores_of, write_completion
from et.inpainting.lit import InpaintingTask
from et.inpainting.model import InpaintingET
from et.inpainting.patches import patchify
from et.inpainting.pixels import from_pixels, normalise, to_pixels
from et.results.run_files import read_descent
from et.utils.errors import UserError


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = InpaintingET(32, 8, dim=16, num_heads=2, head_dim=4, num_memories=16, steps=2, step_size=2.0)
    network.decoder.weight.data *= 30  # so that every step is seen
    return network.eval()


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_crop_of_the_models_size_is_the_image_itself_and_a_larger_one_its_centre():
    image = noise(32, 32)
    assert fit_image(image, (32, 32), "crop") is image
    doubled = Image.fromarray(np.asarray(image).repeat(2, 0).repeat(2, 1))
    wide = Image.new("RGB", (100, 64))
    wide.paste(doubled, (18, 0))
    difference = np.asarray(fit_image(wide, (32, 32), "crop"))[:, 1:-1].astype(int) - np.asarray(image)[:, 1:-1]
    assert fit_image(wide, (32, 32), "crop").size == (32, 32) and abs(difference.mean()) < 2
    assert fit_image(noise(20, 9), (32, 48), "crop").size == (48, 32)


@pytest.mark.parametrize("width, height", [(32, 32), (70, 41), (10, 33)])
def test_tiles_join_to_the_photograph_again(network, width, height):
    image = noise(width, height)
    canvas = make_canvas("noise", image, network, fit="tile")
    assert canvas.tiles.shape[1:] == (3, 32, 32) and canvas.masked.shape == (len(canvas.tiles), 16)
    pixels = canvas.join(to_pixels(canvas.tiles)).permute(1, 2, 0) * 255
    assert np.array_equal(pixels.round().byte().numpy(), np.asarray(image))
    assert cut_tiles(np.asarray(image), (32, 32))[1] == canvas.grid


def test_random_masks_hide_their_share_of_each_tile_and_depend_on_the_seed(network):
    masks = [make_canvas("noise", noise(64, 64), network, ratio=0.25, fit="tile", seed=s).masked for s in (0, 0, 1)]
    assert (masks[0].sum(1) == 4).all() and torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_random_masks_hide_nothing_outside_of_the_photograph(network):
    canvas = make_canvas("noise", noise(33, 33), network, ratio=1.0, fit="tile")
    whole = canvas.masked.reshape(2, 2, 4, 4).permute(0, 2, 1, 3).reshape(8, 8)
    assert whole[:5, :5].all() and whole.sum() == 25
    (completion,) = complete_all(network, iter([canvas]))
    assert scores_of(network, completion)["hidden"] == 1


def test_a_mask_is_what_is_painted_and_not_what_is_transparent(network, tmp_path):
    drawing = np.zeros((32, 32, 4), dtype=np.uint8)
    drawing[9:15, 17] = 255
    Image.fromarray(drawing).save(tmp_path / "mask.png")
    masked = make_canvas("noise", noise(32, 32), network, str(tmp_path / "mask.png")).masked
    assert masked.nonzero().tolist() == [[0, 6]]


@pytest.mark.parametrize("row", range(0, 320, 37))
def test_a_thin_stroke_on_a_large_mask_is_seen(network, tmp_path, row):
    drawing = np.zeros((320, 320), dtype=np.uint8)
    drawing[row] = 255
    Image.fromarray(drawing).save(tmp_path / "mask.png")
    for size in (32, 320):
        masked = make_canvas("noise", noise(size, size), network, str(tmp_path / "mask.png")).masked.reshape(4, 4)
        assert masked[row // 80].all() and masked.sum() == 4


def test_the_errors_of_every_step_are_over_all_hidden_patches(network, tmp_path):
    """A tile without a hidden patch has no part in them."""
    drawing = np.zeros((64, 64), dtype=np.uint8)
    drawing[:8, :16] = 255
    Image.fromarray(drawing).save(tmp_path / "mask.png")
    canvas = make_canvas("noise", noise(64, 64), network, str(tmp_path / "mask.png"), fit="tile")
    (completion,) = complete_all(network, iter([canvas]))
    write_completion(completion, tmp_path / "out", network.patch_size)
    with (tmp_path / "out" / "energies.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["mse_masked"]) == pytest.approx(scores_of(network, completion)["mse_masked"], rel=1e-5)


def test_a_tiny_picture_has_no_ssim_and_one_of_one_colour_has_a_summary(network):
    canvas = make_canvas("dot", noise(4, 4), network, ratio=1.0, fit="tile")
    (completion,) = complete_all(network, iter([canvas]))
    assert math.isnan(scores_of(network, completion)["ssim"])
    metrics = {"test/mse_masked": 0.25, "test/mse_nearest_fill": 0.0, "test/mse_mean_fill": 0.5}
    text = InpaintingTask.summary({"metrics": metrics})
    assert text == "Mean squared error on masked patches: 0.250, 50% lower than the mean of the visible pixels (0.500)."
    text = InpaintingTask.summary({"metrics": {**metrics, "test/mse_mean_fill": 0.0}})
    assert text == "Mean squared error on masked patches: 0.250."


def test_a_block_is_at_the_centre_of_the_photograph_not_of_each_tile(network):
    crop = make_canvas("noise", noise(32, 32), network, "block", 0.25).masked.reshape(4, 4)
    assert crop[1:3, 1:3].all() and crop.sum() == 4
    tiled = make_canvas("noise", noise(64, 64), network, "block", 0.25, "tile").masked.reshape(2, 2, 4, 4)
    whole = tiled.permute(0, 2, 1, 3).reshape(8, 8)
    assert whole[2:6, 2:6].all() and whole.sum() == 16


@pytest.mark.parametrize("fit", ("crop", "tile"))
def test_a_drawn_mask_hides_the_patches_that_it_touches(network, tmp_path, fit):
    drawing = np.zeros((32, 32), dtype=np.uint8)
    drawing[9:15, 17] = 255  # in row 1, column 2
    Image.fromarray(drawing).save(tmp_path / "mask.png")
    masked = make_canvas("noise", noise(32, 32), network, str(tmp_path / "mask.png"), fit=fit).masked
    assert masked.nonzero().tolist() == [[0, 6]]
    scaled = make_canvas("noise", noise(64, 64), network, str(tmp_path / "mask.png"), fit=fit)
    assert scaled.masked.sum() == (1 if fit == "crop" else 2)
    Image.fromarray(np.zeros((32, 32), dtype=np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(UserError, match="hides no patch"):
        make_canvas("noise", noise(32, 32), network, str(tmp_path / "black.png"))
    with pytest.raises(UserError, match="cannot read the image"):
        make_canvas("noise", noise(32, 32), network, str(tmp_path / "absent.png"))


@pytest.mark.parametrize("batch_size", (1, 3, 100))
def test_a_completion_does_not_depend_on_the_batch_and_keeps_what_is_visible(network, batch_size):
    canvases = [make_canvas(str(n), noise(40 + 20 * n, 32, n), network, fit="tile", seed=n) for n in range(3)]
    found = list(complete_all(network, iter(canvases), batch_size))
    assert [completion.canvas.name for completion in found] == ["0", "1", "2"]
    for canvas, completion in zip(canvases, found, strict=True):
        with torch.no_grad():
            expected = network.complete(canvas.tiles, canvas.masked)
        torch.testing.assert_close(completion.frames[-1], canvas.join(to_pixels(expected)))
        assert completion.frames.shape[:2] == (3, 3) and completion.attention.shape == (3, len(canvas.tiles))
        shown = canvas.join((~canvas.masked).reshape(-1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None])
        difference = (completion.frames[-1] - completion.original).abs() * shown
        assert difference.max() < 1e-6


def test_the_scores_of_a_tiled_photograph_are_over_all_its_hidden_patches(network):
    canvas = make_canvas("noise", noise(64, 32), network, "block", 0.3, "tile")
    (completion,) = complete_all(network, iter([canvas]))
    with torch.no_grad():
        error = (network(canvas.tiles, canvas.masked) - patchify(canvas.tiles, 8))[canvas.masked].square().mean()
    found = scores_of(network, completion)
    assert found["mse_masked"] == pytest.approx(error.item(), rel=1e-5)
    assert found["hidden"] == pytest.approx(canvas.masked.float().mean().item())


def test_pixels_and_normalised_images_are_each_others_inverse():
    image = normalise(np.asarray(noise(8, 8)))
    torch.testing.assert_close(from_pixels(to_pixels(image)), image)


def test_a_folder_is_completed_from_the_command_line(network, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("et.runs.loading.load_run", lambda run: (None, network))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "a.jpg", "deep/b.png")):
        noise(50, 40, number).save(tmp_path / "mine" / name)
    assert complete.main(["mine", "--report", "--precision", "32"]) == 0
    said = capsys.readouterr().out
    assert "3 photographs cropped to 32 x 32, 50% of the patches hidden, float32" in said
    assert "copying the nearest visible patch" in said
    output = tmp_path / "completed" / "mine"
    with (output / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "a_png", "deep/b"] and all(float(row["ssim"]) < 1 for row in rows)
    for name in ("a", "a_png", "deep/b"):
        files = {path.name for path in (output / name).iterdir()}
        pictures = {"masked.png", "completed.png", "original.png", "descent.webp", "energies.png"}
        assert files == {*pictures, "energies.csv"}
        with Image.open(output / name / "descent.webp") as movie:
            assert movie.n_frames == 3
        assert len((output / name / "energies.csv").read_text().splitlines()) == 1 + 3
    (tmp_path / "other" / "mine").mkdir(parents=True)  # another folder of this name leaves the first one's results
    noise(50, 40).save(tmp_path / "other" / "mine" / "c.png")
    for _ in range(2):
        assert complete.main(["other/mine", "--scores-only"]) == 0
    (other,) = (tmp_path / "completed").glob("mine-*")
    assert (other / "scores.csv").read_text().splitlines()[1].startswith("c,")
    assert complete.main(["mine/a.png", "--mask", "block"]) == 0
    alone = {path.name for path in (tmp_path / "completed" / "a").iterdir()}
    assert alone == {*files, "scores.csv", "overview.png"}
    descent = read_descent(output)
    assert descent["title"] == "pretrained weights"
    assert [picture["name"] for picture in descent["pictures"]] == ["a", "a_png", "deep/b"]


def test_without_weights_it_says_so_and_goes_on_only_if_asked(monkeypatch, tmp_path, capsys):
    def absent(run):
        raise UserError("no weights here")

    monkeypatch.setattr("et.runs.loading.load_run", absent)
    assert complete.main(["--embedded", "--if-available", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "The pretrained model is left out: no weights here\n"
    with pytest.raises(SystemExit, match="1"):
        complete.main(["--embedded"])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_completed_is_told(tmp_path):
    with pytest.raises(UserError, match="no photograph or folder"):
        inputs_of([str(tmp_path / "absent.jpg")], False)
    with pytest.raises(UserError, match="name a photograph"):
        inputs_of([], False)
    for arguments in (["x.jpg", "--ratio", "0"], ["x.jpg", "--batch-size", "0"], ["x.jpg", "--fit", "stretch"]):
        with pytest.raises(SystemExit, match="2"):
            complete.main(arguments)
