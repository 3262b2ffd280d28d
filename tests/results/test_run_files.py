"""Curves, pictures and descents of run folders, whole and damaged."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from et.results.run_files import as_data_uri, picture_files, read_curves, read_descent
from tests.results.folders import write_descent, write_metrics


def test_curves_are_those_of_training_and_validation(tmp_path):
    write_metrics(tmp_path, steps=5)
    curves = read_curves(tmp_path)
    assert list(curves) == ["train/loss", "val/f1_macro"], "no learning rate, no test score, nothing with one point"
    steps, values = curves["val/f1_macro"]
    assert steps == [0, 2, 4] and values == pytest.approx([0.5, 0.6, 0.7])


def test_long_curves_are_thinned_to_means(tmp_path):
    write_metrics(tmp_path, steps=1000)
    steps, values = read_curves(tmp_path, points=10)["train/loss"]
    assert len(steps) == len(values) == 10
    assert steps[0] == 99 and steps[-1] == 999
    assert values[0] == pytest.approx(sum(1 / (1 + step) for step in range(100)) / 100, rel=1e-3)
    assert list(read_curves(tmp_path, names=1)) == ["train/loss"]


@pytest.mark.parametrize(
    "text",
    ["", "nothing\n1\n", "step,train/loss\nx,y\n", "step,train/loss\n0,1,2\n", "step,train/loss\n1,nan\n2,inf\n"],
)
def test_a_damaged_metrics_file_has_no_curves(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    assert read_curves(tmp_path) == {}
    assert read_curves(tmp_path / "absent") == {}


def picture_in(uri: str) -> Image.Image:
    head, content = uri.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_pictures_become_small_data_uris(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (3000, 600), "red").save(tmp_path / "pictures" / "wide.png")
    (path,) = picture_files(tmp_path)
    assert picture_in(as_data_uri(path)).size == (1400, 280)


def test_a_file_that_is_no_picture_is_told(tmp_path, monkeypatch):
    path = tmp_path / "odd.png"
    path.write_bytes(b"odd")
    with pytest.raises(OSError, match="not a picture"):
        as_data_uri(path)
    Image.new("RGB", (30, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match="not a picture: Image size"):
        as_data_uri(path)


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_an_animation_goes_in_with_all_its_frames(tmp_path, kind):
    (tmp_path / "figures").mkdir()
    frames = [Image.new("RGB", (40, 20), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "figures" / f"completion.{kind}", save_all=True, append_images=frames[1:])
    (tmp_path / "figures" / "figures.json").write_text("{}")
    (path,) = picture_files(tmp_path)
    head, content = as_data_uri(path).split(",")
    assert head == f"data:image/{kind};base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).n_frames == 3


@pytest.mark.parametrize("place", ["pictures", "evaluation"])
def test_a_descent_is_read_with_its_pictures(tmp_path, place):
    write_descent(tmp_path, place=place, steps=3)
    (picture,) = read_descent(tmp_path)["pictures"]
    assert len(picture["frames"]) == 4
    assert picture_in(picture["frames"][0]).size == (picture["width"], picture["height"])


def test_a_descent_that_is_not_whole_is_none(tmp_path):
    assert read_descent(tmp_path) is None
    path = write_descent(tmp_path, steps=3)
    record = json.loads(path.read_text())
    record["pictures"][0]["attention"].pop()
    path.write_text(json.dumps(record))
    assert read_descent(tmp_path) is None, "a step without its energy"
    write_descent(tmp_path, steps=3)
    next((tmp_path / "pictures/descent").glob("*t02.webp")).unlink()
    assert read_descent(tmp_path) is None, "a step without its picture"
    path.write_text("{")
    assert read_descent(tmp_path) is None


@pytest.mark.parametrize("link", (False, True), ids=("name", "link"))
def test_a_descent_shows_no_file_from_elsewhere(tmp_path, link):
    folder, secret = tmp_path / "run", tmp_path / "secret.webp"
    path = write_descent(folder)
    secret.write_bytes(b"not for the page")
    record = json.loads(path.read_text())
    if link:
        shown = folder / "pictures" / record["pictures"][0]["masked"]
        shown.unlink()
        shown.symlink_to(secret)
    else:
        record["pictures"][0]["masked"] = "../../secret.webp"
    path.write_text(json.dumps(record))
    assert read_descent(folder) is None
    (folder / "pictures" / "linked.webp").symlink_to(secret)
    assert all(secret.resolve() != picture.resolve() for picture in picture_files(folder))


@pytest.mark.parametrize("text", ("[" * 5000, '{"pictures": 3}', '{"pictures": [3]}', "[]"))
def test_a_malformed_descent_is_none(tmp_path, text):
    write_descent(tmp_path).write_text(text)
    assert read_descent(tmp_path) is None


def test_curves_with_broken_bytes_are_none(tmp_path):
    for content in (b"step,train/loss\n0,\xff\n", b"step,train/loss\n0,1\x00\n1,2\n"):
        (tmp_path / "metrics.csv").write_bytes(content)
        assert read_curves(tmp_path) == {}
