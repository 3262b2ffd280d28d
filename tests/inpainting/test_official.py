"""The authors' checkpoint format against what their own code computes from it (fixtures/official_image.npz)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from et.errors import UserError
from et.inpainting.model import InpaintingET
from et.inpainting.official import KEYS, model_arguments, read_official, state_dict
from et.inpainting.patches import unpatchify
from et.inpainting.pixels import normalise

ROOT = Path(__file__).parents[2]


@pytest.fixture
def published(tmp_path, golden):
    """A checkpoint file as the authors publish it, and what belongs to it."""
    arrays = golden("official_image")
    path = tmp_path / "published.npz"
    np.savez(path, **{key: arrays[f"ckpt_{key}"].numpy() for key in KEYS})
    return path, arrays


def test_weights_reproduce_the_authors_output(published):
    path, expected = published
    arrays = read_official(path)
    model = InpaintingET(**model_arguments(arrays))
    model.load_state_dict(state_dict(arrays))
    image = normalise(expected["image"].numpy())[None]
    masked = expected["mask"].bool()[None]
    with torch.no_grad():
        descent = model.trajectory(image, masked, record="energy")
        output = unpatchify(model(image, masked), 16, 224)[0]

    def relative(found, wanted):
        return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()

    assert relative(descent.x[0], expected["tokens"]) < 1e-4
    assert relative(output, expected["output"]) < 1e-4
    assert relative(descent.energies[:, 0], expected["energies"]) < 1e-4


def test_converted_checkpoint_is_evaluated_on_a_folder_of_images(published, tmp_path):
    path, arrays = published
    spec = importlib.util.spec_from_file_location("convert", ROOT / "scripts" / "convert_official_checkpoint.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.convert(path, tmp_path / "official.ckpt")
    (tmp_path / "images").mkdir()
    Image.fromarray(arrays["image"].numpy()).save(tmp_path / "images" / "one.png")
    from hydra import compose, initialize_config_dir

    from et.evaluation import evaluate

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        options = compose(
            "evaluate",
            [f"run={tmp_path}/official.ckpt", f"images={tmp_path}/images", "progress=false", "mask_seeds=1"],
        )
    record = evaluate(options)
    assert record["metrics"]["test/mse"] > 0
    output = Path(record["output"])
    assert (output / "evaluation.json").exists() and (output / "completions.png").stat().st_size > 10_000


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", Wk=np.zeros(3))
    with pytest.raises(UserError, match=r"lacks Wq, Xi"):
        read_official(tmp_path / "other.npz")
    with pytest.raises(UserError, match="cannot read"):
        read_official(tmp_path / "absent.npz")
    np.savez(tmp_path / "pickled.npz", **{key: np.array([object()]) for key in KEYS})
    with pytest.raises(UserError, match="cannot read"):
        read_official(tmp_path / "pickled.npz")
