import pytest
import torch
from hydra.utils import instantiate

from et.inpainting.model import InpaintingET, sincos_positions
from et.inpainting.patches import patchify, unpatchify
from tests.configs import compose_config

SMALL = {"dim": 16, "num_heads": 2, "head_dim": 4, "num_memories": 32, "steps": 3}


@pytest.fixture
def small():
    torch.manual_seed(0)
    return InpaintingET((12, 8), 4, **SMALL)


def test_table_15_parameters_of_the_real_configuration():
    model = instantiate(compose_config("experiment=imagenet_inpainting").model)
    attention, hopfield = model.block.attention, model.block.hopfield
    assert attention.w_query.numel() + attention.w_key.numel() + hopfield.memories.numel() == 3_538_944
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 4.87


@pytest.mark.parametrize("fidelity", ("paper", "released"))
def test_shapes_gradients_and_bfloat16(fidelity):
    model = InpaintingET((12, 8), 4, fidelity=fidelity, **SMALL)
    images, masked = torch.randn(2, 3, 12, 8), torch.rand(2, 6) < 0.5
    masked[:, 0] = True
    output = model(images, masked)
    assert output.shape == (2, 6, 48)
    output.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images, masked).float(), output, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("hidden", (False, True))
def test_masks_of_no_and_of_all_patches(small, hidden):
    images = torch.randn(2, 3, 12, 8)
    masked = torch.full((2, 6), hidden)
    output = small(images, masked)
    assert torch.isfinite(output).all()
    if hidden:  # nothing of the image is left to see
        assert torch.equal(output[0], output[1])
    else:
        assert torch.equal(small.complete(images, masked), images)


def test_hidden_pixels_do_not_reach_the_output(small):
    images, masked = torch.randn(2, 3, 12, 8), torch.tensor([[True, False, True, False, False, True]] * 2)
    changed = patchify(images, 4)
    changed = torch.where(masked[..., None], torch.randn_like(changed), changed)
    other = unpatchify(changed, 4, (12, 8))
    assert not torch.equal(images, other)
    assert torch.equal(small(images, masked), small(other, masked))


def test_images_of_a_batch_do_not_influence_each_other(small):
    images, masked = torch.randn(3, 3, 12, 8), torch.rand(3, 6) < 0.5
    torch.testing.assert_close(small(images, masked)[1:2], small(images[1:2], masked[1:2]))


def test_completion_keeps_visible_pixels(small):
    images, masked = torch.randn(2, 3, 12, 8), torch.tensor([[True, False, True, False, False, True]] * 2)
    before, after = patchify(images, 4), patchify(small.complete(images, masked), 4)
    assert torch.equal(before[~masked], after[~masked])
    assert not torch.isclose(before[masked], after[masked]).all()


def test_trajectory_ends_where_the_forward_pass_does(small):
    images, masked = torch.randn(2, 3, 12, 8), torch.rand(2, 6) < 0.5
    descent = small.trajectory(images, masked)
    assert descent.states.shape == (4, 2, 7, 16) and descent.energies.shape == (4, 2)
    torch.testing.assert_close(small.decode(descent.x[:, 1:]), small(images, masked))


def test_fidelity_chooses_self_attention_and_initial_weights():
    paper, released = (InpaintingET(fidelity=fidelity) for fidelity in ("paper", "released"))
    assert not paper.block.attention.all_pairs.self_attention and released.block.attention.all_pairs.self_attention
    assert paper.position.std().item() == pytest.approx(0.02, rel=0.05)
    assert released.block.attention.w_key.std().item() == pytest.approx(0.002, rel=0.05)
    assert released.block.hopfield.memories.std().item() == pytest.approx(0.02, rel=0.05)
    with pytest.raises(ValueError, match="fidelity must be"):
        InpaintingET(fidelity="exact")


def test_encoder_and_decoder_start_as_fidelity_or_the_option_has_it():
    def found(**changes):
        torch.manual_seed(0)
        model = InpaintingET(64, 16, dim=192, num_heads=1, head_dim=4, num_memories=8, **changes)
        return model.encoder.weight, model.decoder.weight

    for changes in ({"fidelity": "released"}, {"affine_init_std": "fan_in"}):
        for weight, fan_in in zip(found(**changes), (768, 192), strict=True):
            assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
            assert weight.abs().max() <= 2 / 0.8796 * fan_in**-0.5  # Flax's lecun_normal is cut off there
    for changes, std in (({}, 0.02), ({"fidelity": "released", "affine_init_std": 0.1}, 0.1)):
        for weight in found(**changes):
            assert weight.std().item() == pytest.approx(std, rel=0.02)
    with pytest.raises(ValueError, match="affine_init_std must be a number"):
        found(affine_init_std="fan_out")


@pytest.mark.parametrize("experiment", ("imagenet_inpainting", "imagenet_vit", "imagenet_albert_base"))
def test_released_training_on_imagenet_is_float32_unless_asked_otherwise(experiment):
    def precision(*overrides):
        return compose_config(f"experiment={experiment}", *overrides).trainer.precision

    assert precision() == "bf16-mixed" and precision("fidelity=released") == "32-true"
    assert precision("fidelity=released", "trainer.precision=bf16-mixed") == "bf16-mixed"


def test_sincos_positions_have_unit_size_and_like_neighbours():
    positions = sincos_positions((5, 7), 64)
    assert positions.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)
    similarity = torch.nn.functional.cosine_similarity(positions[:, None], positions[None], dim=-1)
    centre = similarity[2 * 7 + 3].reshape(5, 7)
    assert centre[2, 3] == centre.max() and centre[2, 4] > centre[2, 6] and centre[1, 3] > centre[0, 0]
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions((2, 2), 6)
    with pytest.raises(ValueError, match="position_init"):
        InpaintingET(position_init="random")


def test_position_std_sets_the_size_of_the_start():
    model = InpaintingET((12, 8), 4, position_init="sincos", position_std=2.0, **SMALL)
    assert model.position[1:].square().mean().sqrt().item() == pytest.approx(2, rel=0.15)


def test_step_schedules():
    images, masked = torch.randn(2, 3, 12, 8), torch.rand(2, 6) < 0.5
    torch.manual_seed(0)
    constant = InpaintingET((12, 8), 4, **SMALL, step_size=0.5)
    torch.manual_seed(0)
    learned = InpaintingET((12, 8), 4, **SMALL, step_size=0.5, step_schedule="learned")
    torch.testing.assert_close(learned(images, masked), constant(images, masked))
    learned(images, masked).square().sum().backward()
    assert (learned.log_step_sizes.grad != 0).all()
    with torch.no_grad():
        learned.log_step_sizes[2] = 0.0
    assert learned.step_sizes(5).tolist() == pytest.approx([0.5, 0.5, 1, 1, 1])
    assert learned.step_sizes(2).tolist() == pytest.approx([0.5, 0.5])
    falling = InpaintingET((12, 8), 4, **SMALL, step_size=0.5, step_schedule="decreasing")
    assert falling.step_sizes(4).tolist() == pytest.approx([0.5, 0.5 / 2**0.5, 0.5 / 3**0.5, 0.25])
    assert falling.trajectory(images, masked, steps=5).states.shape[0] == 6
    with pytest.raises(ValueError, match="step_schedule"):
        InpaintingET((12, 8), 4, **SMALL, step_schedule="cosine")
