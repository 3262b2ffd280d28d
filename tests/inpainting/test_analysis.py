"""What the figures show is what the network has and does."""

import pytest
import torch

from et.core import descend
from et.inpainting import analysis
from et.inpainting.data import InpaintingData
from et.inpainting.model import InpaintingET
from et.inpainting.patches import patchify
from et.inpainting.photos import Photos
from et.inpainting.scores import masked_mse


@pytest.fixture
def network():
    torch.manual_seed(0)
    return InpaintingET(
        16, 4, dim=16, num_heads=2, head_dim=4, num_memories=24, steps=3, step_size=0.5, position_init="sincos",
        position_std=1.0,
    ).eval()  # fmt: skip


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(2, 3, 16, 16), torch.rand(2, 16) < 0.5


def test_position_similarity_is_one_with_itself_and_local_for_sines(network):
    similarity = analysis.position_similarity(network)
    assert similarity.shape == (4, 4, 4, 4) and similarity.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(similarity.reshape(16, 16).diagonal(), torch.ones(16))
    torch.testing.assert_close(similarity[1, 2, 3, 0], similarity[3, 0, 1, 2])
    assert analysis.locality(similarity) > 0.1
    with torch.no_grad():
        network.position.copy_(torch.randn(17, 16))
    assert abs(analysis.locality(analysis.position_similarity(network))) < 0.2


def test_a_decoded_direction_is_the_difference_it_makes_to_the_decoder(network):
    g, direction = torch.randn(5, 16), torch.randn(5, 16)
    with torch.no_grad():
        difference = network.decoder(g + direction) - network.decoder(g)
    found = analysis.decode_directions(network, direction)
    assert found.shape == (5, 3, 4, 4)
    torch.testing.assert_close(found.flatten(1), difference)


def test_the_followed_updates_are_those_that_the_descent_takes(network, batch):
    seen = analysis.follow(network, *batch)
    assert seen.tokens.shape == seen.attention.shape == seen.hopfield.shape == (4, 2, 16, 48)
    assert seen.attention_size.shape == (4, 2, 16) and seen.energies.shape == (4, 2)
    torch.testing.assert_close(seen.tokens[-1], network(*batch).detach())
    states = network.trajectory(*batch).states.detach()[:, :, 1:]
    moved = analysis.decode_directions(network, states.diff(dim=0)).flatten(-3)
    torch.testing.assert_close(0.5 * (seen.attention + seen.hopfield)[:-1], moved, rtol=1e-3, atol=1e-4)
    assert (seen.energies.diff(dim=0) < 0).all()


def test_a_module_left_out_has_no_update(batch):
    network = InpaintingET(
        16, 4, dim=16, num_heads=2, head_dim=4, num_memories=24, steps=2, block={"use_attention": False}
    )
    seen = analysis.follow(network, *batch)
    assert seen.attention is None and seen.hopfield is not None and not seen.attention_energies.any()


def test_convergence_counts_the_steps_until_rest(network, batch):
    found = analysis.converge(network, *batch, steps=12)
    assert found.speed.shape == (12, 2) and found.energies.shape == found.mse.shape == (13, 2)
    assert (found.speed > 0).all() and (found.energies.diff(dim=0) < 0).all()
    tolerance = float(found.speed[7, 0])
    assert found.steps_to(tolerance)[0] <= 8 and (found.steps_to(0.0) == -1).all()
    tokens = network.embed(patchify(batch[0], 4), batch[1])
    alone = descend(network.block, tokens[:1], 12, 0.5, tol=tolerance)
    assert alone.steps == found.steps_to(tolerance)[0]


def test_errors_are_means_over_the_masks_of_an_image(network):
    data = InpaintingData(Photos(16, 4, levels=1), 16, 4, batch_size=64, mask_seeds=2)
    data.source.eval_length = 5  # of the photographs' windows
    errors = analysis.errors_by_image(network, data)
    dataset = data.test_dataloader().dataset
    for number in range(5):
        found = []
        for sample in (dataset[0, number], dataset[0, 5 + number]):
            with torch.no_grad():
                reconstruction = network(sample["image"][None], sample["masked"][None])
            found.append(masked_mse(reconstruction, patchify(sample["image"][None], 4), sample["occluded"][None]))
        assert errors[number].item() == pytest.approx(torch.cat(found).mean().item(), rel=1e-4)


def test_frames_keep_what_is_visible_and_end_with_the_completion(network, batch):
    images, masked = batch
    with torch.no_grad():
        frames = analysis.frames(network, analysis.follow(network, images, masked), images, masked)
        torch.testing.assert_close(frames[-1], network.complete(images, masked))
    assert frames.shape == (4, 2, 3, 16, 16)
    visible = patchify(frames.flatten(0, 1), 4)[~masked.repeat(4, 1)]
    assert torch.equal(visible, patchify(images.repeat(4, 1, 1, 1), 4)[~masked.repeat(4, 1)])
