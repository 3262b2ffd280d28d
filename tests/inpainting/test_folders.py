"""Trees of images: which files are found, how each kind of file is opened, and what a tree claims to be."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from et.inpainting import folders
from et.inpainting.folders import IMAGENETTE, ImageFolders, has_published_classes, list_images, open_image
from et.utils.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (6, 5)).astype(np.uint8)


def opened(image: Image.Image, path: Path, **options) -> np.ndarray:
    image.save(path, **options)
    return np.asarray(open_image(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two images."""
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "real" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / "real" / name)
    return tmp_path / "real"


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        (GREY, "png"),
        (GREY.astype(np.uint16) * 257, "png"),
        (GREY.astype(np.uint16) * 257, "tif"),
        (GREY.astype(np.int32) * 257, "tif"),
        (GREY.astype(np.int32), "tif"),
        (GREY.astype(np.float32) / 255, "tif"),
        (GREY.astype(np.float32), "tif"),
    ],
)
def test_grey_images_of_any_depth_are_the_same_image(tmp_path, values, ending):
    found = opened(Image.fromarray(values), tmp_path / f"image.{ending}")
    assert found.shape == (6, 5, 3) and np.array_equal(found, np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("values", [-1.0, 300.0, np.nan])
def test_values_that_no_image_has_are_told(tmp_path, values):
    Image.fromarray(np.full((4, 4), values, np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match=r"image\.tif: its values lie between"):
        open_image(tmp_path / "image.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_whatever_colour_it_hides(tmp_path, mode):
    found = []
    for hidden in (0, 200):
        pixels = np.full((4, 4, 4), hidden, np.uint8)
        pixels[..., 3] = 0
        pixels[0] = (30, 30, 30, 255)
        image = Image.fromarray(pixels)
        if mode == "P":
            image = Image.fromarray(np.where(pixels[..., 3] > 0, 1, 0).astype(np.uint8)).convert("P")
            image.putpalette([hidden, hidden, hidden, 30, 30, 30])
            found.append(opened(image, tmp_path / "image.png", transparency=0))
        else:
            found.append(opened(image.convert(mode), tmp_path / "image.png"))
    assert np.array_equal(found[0], found[1])
    assert (found[0][0] == 30).all() and (found[0][1:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_orientation_says(tmp_path, orientation):
    upright = np.asarray(Image.fromarray(GREY).convert("RGB"))
    # What a camera writes is the inverse of what a viewer does.
    turns = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    assert np.array_equal(opened(stored, tmp_path / "image.png", exif=exif), upright)


def test_damaged_metadata_do_not_hide_the_pixels(tmp_path):
    image = Image.fromarray(GREY)
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<I", 8) + b"\xff" * 40
    assert opened(image, tmp_path / "image.jpg", exif=exif, quality=100).shape == (6, 5, 3)


def test_images_that_pillow_refuses_are_named(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.fromarray(GREY).save(path)
    with monkeypatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(UserError, match=r"image\.png is too large \(.*save it smaller"):
            open_image(path)
    text = Image.open(io.BytesIO(path.read_bytes()))
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "x" * (1 << 21), zip=True)
    text.save(path, pnginfo=info)
    with pytest.raises(UserError, match=r"cannot read the image .*image\.png"):
        open_image(path)
    for broken in (b"", b"no image", path.read_bytes()[:60]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"cannot read the image .*image\.png"):
            open_image(path)


def test_a_machine_short_of_something_is_not_a_bad_image(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "image.png")

    def out_of_memory(image, behind):
        raise MemoryError

    monkeypatch.setattr(folders, "to_rgb", out_of_memory)
    with pytest.raises(MemoryError):
        open_image(tmp_path / "image.png")


def test_links_are_followed_and_circles_end(tmp_path, folder):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a").symlink_to(folder / "a")
    (linked / "again").symlink_to(folder / "a")
    (linked / "one.png").symlink_to(folder / "b" / "1.png")
    (linked / "circle").symlink_to(linked)
    names = [str(path.relative_to(linked)) for path in list_images(linked).files]
    assert names == ["a/1.png", "a/2.png", "again/1.png", "again/2.png", "one.png"]
    (linked / "nowhere.png").symlink_to(tmp_path / "absent.png")
    with pytest.raises(UserError, match=r"nowhere\.png is a broken link"):
        list_images(linked)


def test_hidden_files_do_not_count_and_unread_types_are_counted(folder):
    for hidden in (".thumbnails/1.png", "a/._1.png", "__MACOSX/1.png", "c.png/1.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        Image.fromarray(GREY).save(folder / hidden)
    for other in ("a/3.gif", "b/3.GIF", "b/4.heic", "b/labels.csv", "README"):
        (folder / other).touch()
    with pytest.warns(UserWarning, match=r"not read: 2 of type \.gif, 1 of type \.heic\. Convert them"):
        listing = list_images(folder)
    assert len(listing.files) == 5 and listing.skipped == {".gif": 2, ".heic": 1}
    with pytest.warns(UserWarning):
        described = ImageFolders(str(folder), 16, train="a", evaluation="b").describe()
    assert described["skipped_images"] == {".gif": 2, ".heic": 1}


def test_a_tree_with_the_published_numbers_has_the_published_classes_too(folder):
    with pytest.warns(UserWarning, match="is not the published imagenette"):
        tree = ImageFolders(str(folder), 16, train="a", evaluation="b", name="imagenette", expected=(2, 2))
    assert tree.variant == "user data, as many images as the published data in other classes"
    counts = [{name: both[part] for name, both in IMAGENETTE.items()} for part in (0, 1)]
    assert [sum(part.values()) for part in counts] == [9469, 3925] and has_published_classes("imagenette", counts)
    counts[0]["n01440764"] += 1
    assert not has_published_classes("imagenette", counts)
    whole = [{f"n{number}": 1300 for number in range(1000)}, {f"n{number}": 50 for number in range(1000)}]
    assert has_published_classes("imagenet", whole)
    whole[1]["n0"] = 49
    assert not has_published_classes("imagenet", whole)
