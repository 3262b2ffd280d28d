"""Fetching published weights without a network, and what they compute against a second implementation."""

import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from et.inpainting.model import InpaintingET
from et.inpainting.pixels import normalise
from et.integrations import pretrained
from et.integrations.official_images import KEYS, model_arguments, read_official, resize_positions, state_dict
from et.integrations.pretrained import WEIGHTS, cache_folder, find_weights, load_pretrained
from et.runs.loading import initialise, load_run, load_weights, output_folder
from et.utils.errors import UserError
from tests.integrations import einsum_reference

NAME = "et_base_imagenet"


def small_arrays(seed=0, side=2, patch=4, dim=8, heads=2, head_dim=4, memories=16):
    """Arrays as the authors publish them, of a small model."""
    rng = np.random.default_rng(seed)
    pixels, shapes = 3 * patch * patch, {}
    shapes = {
        "Wk": (heads, head_dim, dim), "Wq": (heads, head_dim, dim), "Xi": (dim, memories), "Wenc": (pixels, dim),
        "Benc": (dim,), "Wdec": (dim, pixels), "Bdec": (pixels,), "LNORM_gamma": (), "LNORM_bias": (dim,),
        "CLS_token": (dim,), "MASK_token": (dim,), "POS_embed": (1 + side * side, dim),
    }  # fmt: skip
    return {key: rng.normal(size=shapes[key]).astype(np.float32) for key in KEYS}


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Small weights take the place of the published ones; no source of them is reached. Returns (content, weights)."""
    buffer = io.BytesIO()
    np.savez(buffer, **small_arrays())
    content = buffer.getvalue()
    weights = replace(WEIGHTS[NAME], sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    monkeypatch.setitem(WEIGHTS, NAME, weights)
    monkeypatch.setenv("ET_CACHE_DIR", str(tmp_path / "cache"))

    def out_of_reach(*given, **named):
        raise OSError("out of reach")

    monkeypatch.setattr(pretrained.urllib.request, "urlopen", out_of_reach)
    monkeypatch.setattr(pretrained.subprocess, "run", out_of_reach)
    return content, weights


def test_the_repository_is_asked_once_and_the_cache_from_then_on(published, monkeypatch, capsys):
    content, weights = published
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(pretrained.urllib.request, "urlopen", answer)
    first = find_weights(NAME)
    assert first == cache_folder() / weights.file and first.read_bytes() == content and asked == [weights.url]
    assert "MIT License" in capsys.readouterr().err
    assert find_weights(NAME) == first == find_weights(NAME, download=False) and len(asked) == 1
    assert capsys.readouterr().err == "", "source and licence are printed once"
    assert isinstance(load_pretrained(NAME), InpaintingET) and len(asked) == 1
    assert [path.name for path in first.parent.iterdir()] == [first.name], "nothing half-written stays"


def test_pip_is_asked_next_with_the_archives_hash_and_only_the_member_is_read(published, monkeypatch):
    content, weights = published
    commands = []

    def download(command, **named):
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        pinned = Path(command[command.index("--requirement") + 1]).read_text()
        assert pinned == f"amtutorial==0.0.9 --hash=sha256:{weights.package_sha256}\n"
        with tarfile.open(folder / "amtutorial-0.0.9.tar.gz", "w:gz") as archive:
            for name, data in ((weights.member, content), ("../../escaped", b"no")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(pretrained.subprocess, "run", download)
    assert find_weights(NAME).read_bytes() == content
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--require-hashes" in command
    assert not (cache_folder().parent / "escaped").exists()


def test_another_file_is_refused_wherever_it_comes_from(published, monkeypatch, tmp_path):
    content, weights = published
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", lambda *a, **k: io.BytesIO(content[:-1] + b"x"))
    with pytest.raises(UserError, match=r"github.com: the file there has another sha256"):
        find_weights(NAME)
    assert not (cache_folder() / weights.file).exists()
    (tmp_path / "other.npz").write_bytes(b"other")
    with pytest.raises(UserError, match=r"other.npz is not the published file.*remove it"):
        find_weights(NAME, tmp_path / "other.npz")
    cache_folder().mkdir()
    (cache_folder() / weights.file).write_bytes(b"half")
    with pytest.raises(UserError, match="is not the published file"):
        find_weights(NAME)


def test_without_a_source_one_sentence_says_what_to_put_where(published, tmp_path):
    content, _ = published
    with pytest.raises(UserError, match=r"put et_ckpt.npz of amtutorial 0.0.9.*cache/et_base_imagenet-cf2b4112.npz$"):
        find_weights(NAME)
    with pytest.raises(UserError, match="not in the cache"):
        find_weights(NAME, download=False)
    (tmp_path / "mine.npz").write_bytes(content)
    assert find_weights(NAME, tmp_path / "mine.npz") == tmp_path / "mine.npz"
    with pytest.raises(UserError, match="cannot read the weights"):
        find_weights(NAME, tmp_path / "absent.npz")
    with pytest.raises(UserError, match="only et_base_imagenet"):
        find_weights("et_huge")


def test_the_published_weights_are_a_run_wherever_one_is_named(published, monkeypatch, tmp_path):
    content, weights = published
    cache_folder().mkdir()
    (cache_folder() / weights.file).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path / "runs"))
    cfg, network = load_run("pretrained")
    assert cfg.name == "pretrained" and cfg.data.source._target_.endswith("Photos") and not network.training
    assert "self_attention=True" in str(network.block.attention) and (network.steps, network.step_size) == (12, 0.1)
    expected = load_pretrained(NAME).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert load_weights("pretrained", None)[2] == output_folder("pretrained", "evaluation")
    assert output_folder("pretrained", "figures") == tmp_path / "runs" / "pretrained" / "figures"
    (tmp_path / "mine.npz").write_bytes(content)
    (cache_folder() / weights.file).unlink()
    by_path = load_run("mine.npz")[1].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in by_path.items())
    assert load_weights("mine.npz", None)[2] == Path("mine_evaluation")
    (tmp_path / "pretrained").mkdir()
    with pytest.raises(UserError, match="not a run folder"):  # a folder of that name is meant
        load_run("pretrained")


def test_training_starts_from_published_weights_at_other_image_sizes_too(published, tmp_path):
    content, weights = published
    cache_folder().mkdir()
    (cache_folder() / weights.file).write_bytes(content)
    for size in (8, (12, 16)):
        network = InpaintingET(**{**model_arguments(read_official(find_weights())), "image_size": size})
        initialise(network, "pretrained")
        expected = load_pretrained(NAME, image_size=size).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    other = InpaintingET(8, 4, dim=4, num_heads=1, head_dim=4, num_memories=8)
    with pytest.raises(UserError, match="do not fit the configuration of pretrained"):
        initialise(other, "pretrained")


def test_resized_positions_keep_cls_and_constants():
    position = torch.randn(1 + 9, 4)
    assert resize_positions(position, (3, 3)) is position
    larger = resize_positions(torch.cat([position[:1], torch.ones(9, 4)]), (4, 6))
    assert larger.shape == (25, 4) and torch.equal(larger[0], position[0])
    torch.testing.assert_close(larger[1:], torch.ones(24, 4))


def network_of(arrays, dtype):
    arrays = {name: torch.from_numpy(np.asarray(array, dtype=np.float32)) for name, array in arrays.items()}
    network = InpaintingET(**model_arguments(arrays))
    network.load_state_dict(state_dict(arrays))
    return network.to(dtype).eval()


def trajectory_of(network, photo, masked):
    """Tokens and energies of a network at every step, as the second implementation gives them."""
    dtype = network.position.dtype
    image = normalise(photo) if dtype == torch.float32 else torch.from_numpy(_normalised(photo)).permute(2, 0, 1)
    with torch.no_grad():
        found = network.trajectory(image[None].to(dtype), torch.from_numpy(masked)[None])
    energies = torch.stack([found.attention_energies[:, 0], found.hopfield_energies[:, 0]], dim=1)
    return found.states[:, 0].double().numpy(), energies.double().numpy()


def _normalised(photo):
    return (photo / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])


def test_the_second_implementation_agrees_on_a_small_model():
    arrays = small_arrays()
    rng = np.random.default_rng(1)
    photo, masked = rng.integers(0, 256, size=(8, 8, 3)), np.array([True, False, False, True])
    tokens, energies = trajectory_of(network_of(arrays, torch.float64), photo, masked)
    expected_tokens, expected_energies = einsum_reference.descend(arrays, photo, masked, patch=4)
    np.testing.assert_allclose(tokens, expected_tokens, rtol=1e-9)
    np.testing.assert_allclose(energies, expected_energies, rtol=1e-9)


@pytest.fixture(scope="module")
def real_weights():
    try:
        with np.load(find_weights(NAME, download=False)) as arrays:
            return dict(arrays)
    except UserError as error:
        pytest.skip(f"needs the published weights: {error}")


def test_the_fixture_is_what_the_second_implementation_computes(real_weights, golden):
    for name, array in einsum_reference.make_fixture(real_weights).items():
        np.testing.assert_allclose(golden("published")[name], array, rtol=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_the_real_weights_give_the_fixtures_tokens_and_energies_at_every_step(real_weights, golden, dtype, tolerance):
    expected = {name: array.numpy() for name, array in golden("published").items()}
    tokens, energies = trajectory_of(network_of(real_weights, dtype), *einsum_reference.sample())
    assert len(tokens) == 13
    np.testing.assert_allclose(energies, expected["energies"], rtol=tolerance / 10)
    sampled = tokens[:, einsum_reference.SAMPLED_TOKENS][..., einsum_reference.SAMPLED_DIMS]
    np.testing.assert_allclose(sampled, expected["sampled"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=-1), expected["norms"], rtol=tolerance / 10)


def test_timm_and_load_pretrained_give_the_same_tokens(real_weights):
    import timm

    import et.integrations.timm  # noqa: F401  (registers the model)

    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ours = load_pretrained(NAME)
    with torch.no_grad():
        expected = ours.block.norm(ours.trajectory(images, torch.zeros(1, 196, dtype=torch.bool), record=False).x)
        backbone = timm.create_model("et_base_patch16_224", pretrained=True).eval()
        torch.testing.assert_close(backbone.forward_features(images), expected, atol=1e-4, rtol=0)
        assert backbone(images).shape == (1, 768) and "state_dict" not in backbone.pretrained_cfg
        assert timm.create_model("et_base_patch16_224", pretrained=True, num_classes=10)(images).shape == (1, 10)
