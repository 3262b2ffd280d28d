import json

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from et.inpainting.photos import load_photo
from et.inpainting.pixels import to_pixels
from et.inpainting.trajectories import Subject, record_descents, subjects_of
from tests.configs import TINY, compose_config


@pytest.fixture(scope="module")
def demo():
    """An untrained tiny network and its photographs."""
    cfg = compose_config(*TINY, "data.image_size=64", "data.patch_size=16")
    torch.manual_seed(0)
    return instantiate(cfg.model).eval(), instantiate(cfg.data)


@pytest.fixture(scope="module")
def recorded(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return folder, json.loads(record_descents(*demo, folder, steps=3).read_text())


def read(path):
    return torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32) / 255).permute(2, 0, 1)


def test_there_is_a_picture_and_an_energy_for_every_step(recorded):
    folder, record = recorded
    assert [picture["name"] for picture in record["pictures"]] == ["chelsea", "flower"]
    assert record["trained_steps"] == 2
    for picture in record["pictures"]:
        assert [len(picture[key]) for key in ("frames", "attention", "hopfield", "mse_masked")] == [4] * 4
        for name in (*picture["frames"], picture["masked"], picture["original"]):
            assert read(folder / name).shape == (3, picture["height"], picture["width"])


def test_the_original_is_the_photograph_without_its_rest(recorded):
    folder, record = recorded
    chelsea = record["pictures"][0]
    height, width = load_photo("chelsea").shape[:2]
    assert (chelsea["height"], chelsea["width"]) == (height // 64 * 64, width // 64 * 64)
    photo = torch.from_numpy(load_photo("chelsea")[: chelsea["height"], : chelsea["width"]] / 255).permute(2, 0, 1)
    assert (read(folder / chelsea["original"]) - photo).abs().mean() < 0.02, "but for WebP's loss"


def test_step_t_is_the_networks_output_at_t(demo, recorded):
    network, data = demo
    folder, record = recorded
    index = 1  # the second window of the first row
    item = torch.utils.data.default_collate([data.val_dataloader().dataset[0, index]])
    with torch.no_grad():
        completed = to_pixels(network.complete(item["image"], item["masked"]))[0]
    shown = read(folder / record["pictures"][0]["frames"][network.steps])[:, :64, 64:128]
    assert (shown - completed).abs().mean() < 0.03


def test_energies_are_means_over_the_windows_of_a_picture(demo, recorded):
    network, data = demo
    picture = recorded[1]["pictures"][0]
    dataset = data.val_dataloader().dataset
    batch = torch.utils.data.default_collate([dataset[0, index] for index in range(picture["windows"])])
    with torch.no_grad():
        descent = network.trajectory(batch["image"], batch["masked"], 3, record="energy")
    assert picture["attention"] == pytest.approx(descent.attention_energies.mean(1).tolist(), rel=1e-4)
    assert picture["hopfield"] == pytest.approx(descent.hopfield_energies.mean(1).tolist(), rel=1e-4)
    total = np.array(picture["attention"]) + np.array(picture["hopfield"])
    assert (np.diff(total) < 0).all(), "the energy falls"


def test_images_that_are_no_windows_are_recorded_one_by_one():
    class Data:
        class source:
            eval_length = 10

    assert subjects_of(Data, 3) == [Subject("image 0", (0,)), Subject("image 4", (4,)), Subject("image 9", (9,))]
    Data.source.eval_length = 2
    assert len(subjects_of(Data, 3)) == 2
