import numpy as np
import torch

from et.inpainting.photos import HELD_OUT, TRAINING, Photos, WholePhotos, load_photo, pyramid, windows
from et.inpainting.pixels import to_pixels


def test_all_photographs_load():
    for name in (*TRAINING, *HELD_OUT):
        image = load_photo(name)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and min(image.shape[:2]) >= 200


def test_training_and_held_out_photographs_are_disjoint():
    assert not set(TRAINING) & set(HELD_OUT)
    pixels = {load_photo(name).tobytes() for name in TRAINING}
    assert not pixels & {load_photo(name).tobytes() for name in HELD_OUT}


def test_pyramid_halves_by_means():
    image = np.random.default_rng(0).integers(256, size=(9, 12, 3), dtype=np.uint8)
    levels = pyramid(image, 4)
    assert [level.shape for level in levels] == [(9, 12, 3), (4, 6, 3)]
    assert abs(levels[1][0, 0, 0] - image[:2, :2, 0].mean()) <= 0.5


def test_windows_tile_the_image():
    image = np.arange(7 * 9 * 3).reshape(7, 9, 3)
    tiles = windows(image, (3, 4))
    assert len(tiles) == 4
    assert np.array_equal(tiles[3], image[3:6, 4:8])


def test_crops_depend_on_the_generator_alone():
    photos = Photos(16, crops_per_epoch=10)
    first, again, other = (photos.train_item(0, np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.shape == (3, 16, 16) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert photos.describe()["evaluation_images"] == photos.eval_length > 100


def test_whole_photographs_are_all_of_them_cut_at_the_centre():
    source = WholePhotos((32, 48))
    assert sorted(source.eval_names) == sorted((*TRAINING, *HELD_OUT)) and source.eval_length == len(source.eval_names)
    assert {source.eval_item(index).shape for index in (0, 9)} == {(3, 32, 48)}
    same = WholePhotos(load_photo("chelsea").shape[:2], ["chelsea"])
    assert np.array_equal(
        (to_pixels(same.eval_item(0)) * 255).round().numpy(), load_photo("chelsea").transpose(2, 0, 1)
    )
