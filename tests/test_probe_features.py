"""scripts/probe_features.py on photographs of a few pixels: what it extracts, and what its accuracies mean."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from et.inpainting.model import InpaintingET
from tests.configs import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("probe_features", ROOT / "scripts" / "probe_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def network():
    torch.manual_seed(0)
    return InpaintingET(32, 8, dim=16, num_heads=2, head_dim=4, num_memories=24, steps=12).eval()


def test_features_are_pooled_states_of_the_descent(script, network):
    images = torch.randn(3, 3, 32, 32)
    found = script.pooled_tokens(network, images, (0, 1, 5))
    with torch.no_grad():
        states = network.trajectory(images, torch.zeros(3, 16, dtype=torch.bool), 5).states
    for index, step in enumerate((0, 1, 5)):
        for form, tokens in enumerate((states[step], network.block.norm(states[step]))):
            assert torch.allclose(found[:, index, 0, form], tokens[:, 1:].mean(1), atol=1e-5)
            assert torch.allclose(found[:, index, 1, form], tokens[:, 0], atol=1e-5)


def test_patches_without_a_network(script):
    images = torch.arange(2.0)[:, None, None, None].expand(2, 3, 32, 32)
    found = script.raw_patches(images, (8, 8))
    assert found["mean patch"].shape == (2, 3 * 8 * 8) and found["patch colours"].shape == (2, 16 * 3)
    assert all((values[1] == 1).all() and (values[0] == 0).all() for values in found.values())


def test_accuracy_of_separable_and_of_meaningless_features(script):
    rng, labels = np.random.default_rng(0), np.arange(200) % 4
    clear = {"raw": np.eye(4)[labels] + 0.01 * rng.normal(size=(200, 4)), "normalised": rng.normal(size=(200, 4))}
    for row in script.scored(clear, labels, clear, labels):
        assert row["accuracy"] == row["low"] == row["high"] == 100 and row["form"] == "raw"
    other = {"raw": rng.normal(size=(400, 4))}
    for row in script.scored({"raw": rng.normal(size=(200, 4))}, labels, other, np.arange(400) % 4):
        assert 15 < row["accuracy"] < 35 and row["low"] < row["accuracy"] < row["high"]


def test_from_photographs_to_numbers(script, network, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 5)):
        for label, colour in enumerate((40, 200)):
            folder = tmp_path / "imagenette" / part / f"n0{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (colour + rng.integers(-20, 20, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.setattr(script, "load_pretrained", lambda: network)
    monkeypatch.setattr(script, "untrained", lambda like: like)
    monkeypatch.setattr(script, "CHUNK", 7)
    command = [
        "probe_features.py", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"),
        "--data", str(tmp_path / "imagenette"), "--train", "30",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    with pytest.warns(UserWarning, match="not the published imagenette"):
        script.main()
    found = json.loads((tmp_path / "out" / "features.json").read_text())
    assert found["photographs"] == {"train": 30, "val": 10} and found["data"]["variant"] == "40 + 10 images"
    rows = {(row["features"], row["pool"], row.get("step"), row["method"]): row["accuracy"] for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 2 * (2 + 2 * 6 * 2)
    assert rows["raw", "mean patch", None, "linear probe"] == 100
    assert rows["trained", "cls", 0, "linear probe"] == 50  # the same token for every photograph
    assert (tmp_path / "out" / "features.png").stat().st_size > 5000

    def stop(*arguments):
        raise AssertionError("features of the cache are not extracted again")

    monkeypatch.setattr(script, "pooled_tokens", stop)
    monkeypatch.setattr(script, "raw_patches", stop)
    with pytest.warns(UserWarning, match="not the published imagenette"):
        script.main()
    assert json.loads((tmp_path / "out" / "features.json").read_text()) == found


def test_the_numbers_of_the_page_are_those_on_record(script):
    found = json.loads((ROOT / "docs" / "features.json").read_text())
    page = (ROOT / "docs" / "explanation" / "features.md").read_text()
    for row in found["rows"]:
        if row["features"] == "trained" or row.get("step") in (None, 0, 12):
            assert f"{row['accuracy']:.1f} ({row['low']:.0f} to {row['high']:.0f})" in page, row
    assert "{train} training and {val} evaluation photographs".format(**found["photographs"]) in page
