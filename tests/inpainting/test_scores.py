"""Scores of completed images against torchmetrics and scikit-image, and the file of each image's own scores."""

import pytest
import torch
from omegaconf import OmegaConf
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from et.inpainting import scores
from et.inpainting.pixels import STD, to_pixels
from et.inpainting.scores import image_scores, masked_mse, read_scores
from et.training.loggers import RunInfo
from et.training.run import build
from tests.configs import TINY


def test_masked_mse_is_over_the_chosen_patches_of_each_image():
    prediction, target = torch.zeros(2, 3, 2), torch.arange(12.0).reshape(2, 3, 2)
    chosen = torch.tensor([[True, False, False], [False, True, True]])
    expected = torch.tensor([(0 + 1) / 2, (64 + 81 + 100 + 121) / 4])
    torch.testing.assert_close(masked_mse(prediction, target, chosen), expected)
    assert torch.equal(masked_mse(prediction, target, torch.zeros_like(chosen)), torch.zeros(2))


@pytest.fixture
def pair():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 40, 32) * 2 - 1
    return images + 0.2 * torch.randn_like(images), images


def test_image_scores_agree_with_scikit_image_and_torchmetrics(pair):
    found = image_scores(*pair)
    scales = {"": ([to_pixels(images) for images in pair], 1.0), "_normalised": (pair, 3 / sum(STD))}
    for suffix, (images, data_range) in scales.items():
        padded = structural_similarity_index_measure(*images, data_range=data_range, reduction="none")
        torch.testing.assert_close(found[f"ssim{suffix}"], padded, atol=2e-6, rtol=0)
        for number in range(2):
            completed, original = (image[number].numpy() for image in images)
            assert found[f"psnr{suffix}"][number].item() == pytest.approx(
                peak_signal_noise_ratio(original, completed, data_range=data_range), abs=1e-3
            )
            interior = structural_similarity(
                original, completed, data_range=data_range, channel_axis=0, gaussian_weights=True,
                use_sample_covariance=False,
            )  # fmt: skip
            assert found[f"ssim_interior{suffix}"][number].item() == pytest.approx(interior, abs=1e-5)
    assert not torch.allclose(found["ssim"], found["ssim_interior"], atol=1e-4), "the border makes a difference"
    assert all(value.shape == (2,) for value in found.values())
    perfect = image_scores(pair[1], pair[1])
    assert torch.allclose(perfect["ssim"], torch.ones(2)) and torch.isinf(perfect["psnr"]).all()


def test_image_scores_are_the_same_under_autocast(pair):
    with torch.autocast("cpu", torch.bfloat16):
        mixed = image_scores(*pair)
    for name, values in image_scores(*pair).items():
        torch.testing.assert_close(mixed[name], values, rtol=0, atol=0)


def test_every_image_has_its_scores_and_a_stopped_test_goes_on_from_them(config, tmp_path, monkeypatch):
    cfg = config(*TINY)
    scores_file = {"_target_": "et.inpainting.scores.ImageScores", "resume": True}
    OmegaConf.update(cfg, "callbacks.pictures", {"scores": scores_file}, force_add=True)
    whole = build(RunInfo(cfg, tmp_path, "id"))
    whole.trainer.test(whole.task, whole.data, verbose=False)
    metrics = {name: value.item() for name, value in whole.trainer.callback_metrics.items()}
    file = tmp_path / scores.FILE
    rows = read_scores(file)
    assert rows.keys() == {(index, 0) for index in range(whole.data.source.eval_length)}
    for name in ("mse", "ssim_interior", "psnr"):
        mean = sum(row[name] for row in rows.values()) / len(rows)
        assert metrics[f"test/{name}"] == pytest.approx(mean, rel=1e-5)

    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:20]) + lines[20][:10])  # stopped while it wrote
    computed = []
    again = build(RunInfo(cfg, tmp_path, "id"))
    forward = again.task.network.forward
    monkeypatch.setattr(again.task.network, "forward", lambda *given: computed.append(1) or forward(*given))
    again.trainer.test(again.task, again.data, verbose=False)
    assert 0 < len(computed) < len(lines) / 8
    assert {name: value.item() for name, value in again.trainer.callback_metrics.items()} == metrics
    assert read_scores(file) == rows


@pytest.mark.parametrize("content", [b"", b"index,mask_seed,name,mse\n0,0,a,x\n", b"a,b\n1,2\n", b"index\n\xff\n",
                                     b"index,mask_seed,name,mse\n0,0\n"])  # fmt: skip
def test_a_damaged_file_has_no_scores(tmp_path, content):
    (tmp_path / "scores.csv").write_bytes(content)
    assert read_scores(tmp_path / "scores.csv") == {} == read_scores(tmp_path / "absent.csv")
