import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from et.baselines.vit import InpaintingViT
from et.inpainting.lit import InpaintingTask
from et.inpainting.model import InpaintingET
from et.inpainting.random_steps import RandomStepCounts
from et.utils.errors import UserError


@pytest.fixture
def network():
    torch.manual_seed(0)
    return InpaintingET(16, 4, dim=16, num_heads=2, head_dim=4, num_memories=24, steps=3, step_size=0.5)


@pytest.fixture
def images_and_masks():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 16, 16, generator=generator), torch.rand(2, 16, generator=generator) < 0.5


@pytest.mark.parametrize("schedule", ["constant", "decreasing", "learned"])
def test_reconstructions_are_those_of_one_descent(network, images_and_masks, schedule):
    network = InpaintingET(
        16, 4, dim=16, num_heads=2, head_dim=4, num_memories=24, steps=3, step_size=0.5, step_schedule=schedule
    )
    found = RandomStepCounts([2, 4], 3, 5).reconstructions(network, *images_and_masks, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rng.choice(3, 3, replace=False)
    steps = [2, 3, 4, 4 + int(rng.integers(6)) + 2]
    sizes = network.step_sizes(11)
    network.step_sizes = lambda steps: sizes[:steps] if isinstance(sizes, torch.Tensor) else sizes
    for number, reconstruction in zip(steps, found, strict=True):
        network.steps = number
        assert torch.allclose(network(*images_and_masks), reconstruction, atol=1e-5), number


def test_numbers_of_steps_cover_the_range(network, images_and_masks):
    counts, rng = RandomStepCounts([1, 3]), np.random.default_rng(0)
    found = [counts.reconstructions(network, *images_and_masks, rng)[0] for _ in range(20)]
    assert len({round(float(patches.detach().sum()), 3) for patches in found}) == 3


def test_steps_to_rest_pass_no_gradient(network, images_and_masks):
    *_, last = RandomStepCounts([1, 1], 1, 4).reconstructions(network, *images_and_masks, np.random.default_rng(0))
    last.square().mean().backward()
    assert network.encoder.weight.grad is None and network.block.hopfield.memories.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "arguments", [([3, 2],), ([0, 2],), ([2],), ([2, 4], 4), ([2, 4], 0), ([2, 4], 1, -1)], ids=str
)
def test_impossible_numbers_are_refused(arguments):
    with pytest.raises(UserError, match="steps_range"):
        RandomStepCounts(*arguments)


def test_only_an_energy_transformer_of_one_block_varies_its_steps(network):
    vit = InpaintingViT(image_size=16, patch_size=4, dim=16, depth=1, num_heads=2)
    two = InpaintingET(16, 4, dim=16, num_heads=2, head_dim=4, num_memories=24, num_blocks=2)
    for other in (vit, two):
        with pytest.raises(UserError, match="one block"):
            InpaintingTask(other, OmegaConf.create({}), steps_range=[1, 2])
    assert InpaintingTask(network, OmegaConf.create({})).random_steps is None
