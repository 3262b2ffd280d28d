"""The authors' checkpoint formats against what their own code computes from them (fixtures/official_image.npz)."""

import argparse
import importlib.util
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from et.inpainting.model import InpaintingET
from et.inpainting.patches import patchify, unpatchify
from et.inpainting.pixels import MEAN, STD, normalise
from et.integrations.official_images import FLAX_NAMES, KEYS, load_official, model_arguments, read_official, state_dict
from et.utils.errors import UserError
from tests.integrations.flax_files import write_flax

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


def load(path):
    arguments, state = load_official(path)
    model = InpaintingET(**arguments).eval()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("training_state", [False, True])
def test_flax_checkpoints_are_the_same_model(published, tmp_path, training_state):
    path, arrays = published
    params = {name: arrays[f"ckpt_{key}"].float().numpy() for key, name in FLAX_NAMES.items()}
    beside = {"step": np.int32(3), "opt_state": {"0": {"mu": params}}} if training_state else {}
    flax = write_flax(tmp_path / "checkpoint_3", params, **beside)
    expected, found = load(path), load(flax)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    (tmp_path / "folder").mkdir()
    flax.rename(tmp_path / "folder" / "checkpoint")
    assert torch.equal(load(tmp_path / "folder").position, expected.position)


CIFAR = {"data_name": "CIFAR10", "time_steps": 2, "alpha": 0.7, "attn_beta": 0.6, "blocks": 2}


def port_weights(
    blocks=2, bias=True, dim=8, heads=2, head_dim=3, memories=12, pixels=48, patches=4, dtype=torch.float64
):
    """A state dictionary of the authors' PyTorch port with random numbers."""
    torch.manual_seed(0)
    shapes = {
        "cls": (1, 1, dim), "mask": (1, 1, dim), "encode.0.weight": (dim, pixels), "encode.0.bias": (dim,),
        "decode.0.weight": (dim,), "decode.0.bias": (dim,), "decode.1.weight": (pixels, dim),
        "decode.1.bias": (pixels,), "pos.weight": (1, 1 + patches, dim),
    }  # fmt: skip
    for number in range(blocks):
        of_block = {
            "0.gamma": (1,), "0.bias": (dim,), "1.hn.proj.weight": (memories, dim),
            "1.attn.wq": (heads, head_dim, dim), "1.attn.wk": (heads, head_dim, dim),
        }  # fmt: skip
        of_block |= {"1.hn.proj.bias": (memories,), "1.attn.bq": (head_dim,), "1.attn.bk": (head_dim,)} if bias else {}
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in of_block.items()}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def port_forward(weights, images, masked, steps, alpha, beta):
    """What the port computes, (B, N, P), by automatic differentiation of its energy."""

    def energy(block, g):
        q, k = (
            torch.einsum("bnd,hyd->bnhy", g, block[f"1.attn.w{name}"]) + block.get(f"1.attn.b{name}", 0)
            for name in "qk"
        )
        attention = -torch.logsumexp(beta * torch.einsum("bqhy,bkhy->bhqk", q, k), -1).sum() / beta
        hidden = g @ block["1.hn.proj.weight"].T + block.get("1.hn.proj.bias", 0)
        return attention - 0.5 * torch.relu(hidden).square().sum()

    x = patchify(images, 4) @ weights["encode.0.weight"].T + weights["encode.0.bias"]
    x = torch.where(masked[..., None], weights["mask"], x)
    x = torch.cat([weights["cls"].expand(len(x), -1, -1), x], dim=1) + weights["pos.weight"]
    for number in range(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))):
        prefix = f"blocks.{number}."
        block = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for _ in range(steps):
            centred = x - x.mean(-1, keepdim=True)
            g = block["0.gamma"] * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + block["0.bias"]
            g = g.detach().requires_grad_()
            x = x - alpha * torch.autograd.grad(energy(block, g), g)[0]
    dim = x.shape[-1]  # which the port hands to LayerNorm as its eps
    x = torch.nn.functional.layer_norm(x, (dim,), weights["decode.0.weight"], weights["decode.0.bias"], eps=dim)
    return (x @ weights["decode.1.weight"].T + weights["decode.1.bias"])[:, 1:]


def by_channel(values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_pytorch_port_is_the_same_model(tmp_path, blocks, bias):
    weights, settings = port_weights(blocks, bias), CIFAR | {"blocks": blocks}
    torch.save(weights, tmp_path / "model.pth")
    (tmp_path / "model_config.txt").write_text(repr(settings))
    model = load(tmp_path / "model.pth").double()
    model.load_state_dict(load_official(tmp_path / "model.pth")[1])  # in float64
    pixels = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    masked = torch.tensor([[True, False, False, True], [False, False, True, False]])
    mean, std = by_channel((0.4914, 0.4822, 0.4465)), by_channel((0.2023, 0.1994, 0.2010))
    expected = unpatchify(port_forward(weights, (pixels - mean) / std, masked, 2, 0.7, 0.6), 4, 8) * std + mean
    own_mean, own_std = by_channel(MEAN), by_channel(STD)
    images = (pixels - own_mean) / own_std
    found = unpatchify(model(images, masked), 4, 8) * own_std + own_mean
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    descent = model.trajectory(images, masked)
    assert descent.states.shape[0] == descent.energies.shape[0] == 2 * blocks + 1
    torch.testing.assert_close(model.decode(descent.x[:, 1:]), model(images, masked))


def test_a_training_checkpoint_of_the_port_brings_its_settings(tmp_path):
    weights = port_weights(1, dtype=torch.float32)
    args = argparse.Namespace(**CIFAR | {"attn_beta": None, "data_name": "other"})
    torch.save({"model": weights, "epoch": 3, "opt": {"state": {}}, "args": args}, tmp_path / "3.pth")
    model = load(tmp_path / "3.pth")
    assert (model.steps, model.step_size) == (2, 0.7)
    assert model.block.attention.beta.tolist() == pytest.approx([3**-0.5] * 2)
    assert torch.equal(model.encoder.weight, weights["encode.0.weight"])  # of images as this project normalises them


def write_source(form, published, folder):
    """The published file in another form, or one of the PyTorch port."""
    path, arrays = published
    if form == "npz":
        return path
    if form == "flax":
        return write_flax(
            folder / "checkpoint_3",
            {name: arrays[f"ckpt_{key}"].float().numpy() for key, name in FLAX_NAMES.items()},
        )
    torch.save(port_weights(2, pixels=3 * 4 * 4, patches=64, dtype=torch.float32), folder / "model.pth")
    (folder / "model_config.txt").write_text(repr(CIFAR))
    return folder / "model.pth"


@pytest.mark.parametrize("form", ["npz", "flax", "port"])
def test_converted_checkpoint_is_evaluated_on_a_folder_of_images(published, tmp_path, form):
    arrays = published[1]
    spec = importlib.util.spec_from_file_location("convert", ROOT / "scripts" / "convert_official_checkpoint.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.convert(write_source(form, published, tmp_path), tmp_path / "official.ckpt")
    (tmp_path / "images").mkdir()
    Image.fromarray(arrays["image"].numpy()).save(tmp_path / "images" / "one.png")
    from hydra import compose, initialize_config_dir

    from et.training.evaluation import evaluate

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


def test_what_would_execute_code_is_refused_by_name(tmp_path):
    touched = tmp_path / "touched"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(touched),)

    weights = port_weights(1)
    torch.save({**weights, "more": Harmful()}, tmp_path / "model.pth")
    torch.save({**weights, "more": Harmful()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(Harmful()))
    for name in ("model.pth", "old.pth", "model.pickle"):
        with pytest.raises(UserError, match=rf"{name}.* (it holds posix.mkdir|is a pickle).* execute code") as error:
            load_official(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not touched.exists()


def refused(path, message):
    with pytest.raises(UserError, match=message):
        load_official(path)


def test_other_models_are_refused_by_what_they_have(published, tmp_path):
    arrays = published[1]
    params = {name: arrays[f"ckpt_{key}"].float().numpy() for key, name in FLAX_NAMES.items()}
    head = {"cls_head/layers_1/kernel": np.zeros((2, 2), np.float32)}
    refused(write_flax(tmp_path / "a", params | head), "it has cls_head/layers_1/kernel in addition")
    refused(write_flax(tmp_path / "b", {"decoder/kernel": np.zeros((2, 2))}), "lacks backbone/block/attn/Wk")
    refused(write_flax(tmp_path / "c", {"decoder/kernel": "PLACEHOLDER://decoder.kernel"}), "a file of its own")
    whole = write_flax(tmp_path / "d", params).read_bytes()
    (tmp_path / "e").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "e", "a damaged Flax checkpoint")
    (tmp_path / "f").mkdir()
    refused(tmp_path / "f", "folder of Orbax")


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"blocks.0.0.gamma": None}, CIFAR, "lacks blocks.0.0.gamma"),
        ({"blocks.0.1.attn.rotary": torch.zeros(2)}, CIFAR, "has blocks.0.1.attn.rotary in addition"),
        ({"decode.1.weight": torch.zeros(10, 8)}, CIFAR, "completes no images: it has 10 outputs"),
        ({}, {"alpha": 1.0}, "lack time_steps"),
        ({}, None, "put the authors' model_config.txt beside it"),
        ({}, "__import__('os')", "not a dictionary of plain values"),
    ],
)
def test_other_models_of_the_port_are_refused(tmp_path, change, settings, message):
    weights = {name: value for name, value in (port_weights(1) | change).items() if value is not None}
    torch.save(weights, tmp_path / "model.pth")
    if settings is not None:
        (tmp_path / "model_config.txt").write_text(settings if isinstance(settings, str) else repr(settings))
    refused(tmp_path / "model.pth", message)
