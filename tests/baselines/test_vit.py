import pytest
import torch
from omegaconf import OmegaConf

from et.baselines.vit import InpaintingViT
from et.inpainting.lit import InpaintingTask
from et.inpainting.patches import patchify
from et.results.settings import count_parameters

SMALL = {"image_size": 16, "patch_size": 4, "dim": 8, "depth": 3, "num_heads": 2}


@pytest.fixture(params=(False, True), ids=("feed-forward", "shared"))
def network(request):
    torch.manual_seed(0)
    return InpaintingViT(**SMALL, shared=request.param)


def test_shapes_and_gradients_everywhere(network):
    images, masked = torch.randn(2, 3, 16, 16), torch.rand(2, 16) < 0.5
    reconstruction = network(images, masked)
    assert reconstruction.shape == (2, 16, 48)
    reconstruction.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_masked_patches_are_not_seen(network):
    images, masked = torch.randn(1, 3, 16, 16), torch.zeros(1, 16, dtype=torch.bool)
    masked[0, 5] = True
    other = images.clone()
    other[:, :, 4:8, 4:8] += 1  # patch 5 of a 4 x 4 grid
    assert torch.equal(network(images, masked), network(other, masked))
    assert not torch.allclose(network(images, ~masked), network(other, ~masked))


def test_only_masked_patches_are_replaced(network):
    images, masked = torch.randn(2, 3, 16, 16), torch.rand(2, 16) < 0.5
    completed = patchify(network.complete(images, masked), 4)
    assert torch.equal(completed[~masked], patchify(images, 4)[~masked])
    torch.testing.assert_close(completed[masked], network(images, masked)[masked])


def test_shared_layers_are_one_block_applied_depth_times():
    torch.manual_seed(0)
    shared, apart = InpaintingViT(**SMALL, shared=True), InpaintingViT(**SMALL)
    assert len(shared.blocks) == 1 and len(apart.blocks) == 3
    for block in apart.blocks:
        block.load_state_dict(shared.blocks[0].state_dict())
    rest = {name: value for name, value in shared.state_dict().items() if ".blocks." not in name}
    apart.load_state_dict(rest, strict=False)
    images, masked = torch.randn(2, 3, 16, 16), torch.rand(2, 16) < 0.5
    torch.testing.assert_close(shared(images, masked), apart(images, masked))


def test_no_bias_leaves_none():
    network = InpaintingViT(**SMALL, bias=False)
    assert not [name for name, _ in network.named_parameters() if name.endswith("bias")]


def test_the_task_trains_and_scores_it():
    task = InpaintingTask(InpaintingViT(**SMALL), OmegaConf.create({}))
    batch = {
        "image": torch.randn(2, 3, 16, 16), "masked": torch.rand(2, 16) < 0.5, "occluded": torch.rand(2, 16) < 0.5,
        "index": torch.arange(2), "mask_seed": torch.zeros(2, dtype=torch.long),
    }  # fmt: skip
    assert task.training_step(batch, 0).requires_grad
    task.test_step(batch, 0)
    assert task.tests["mse"].compute()["mean"] > 0


@pytest.mark.parametrize(
    ("experiment", "millions", "block_millions"),
    (("imagenet_vit_base", 86.28, 7.08), ("imagenet_albert_base", 8.41, 7.08), ("imagenet_inpainting", 4.87, 3.54)),
)
def test_table_15_counted_from_the_modules(experiment, millions, block_millions):
    counted = count_parameters(experiment)
    assert counted["params"] / 1e6 == pytest.approx(millions, abs=0.01)
    assert counted["block_params"] / 1e6 == pytest.approx(block_millions, abs=0.005)


def test_the_small_vit_has_the_size_of_et():
    assert count_parameters("imagenette_vit")["params"] == pytest.approx(
        count_parameters("imagenette_inpainting")["params"], rel=0.05
    )


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="position_init"):
        InpaintingViT(**SMALL, position_init="rotary")
