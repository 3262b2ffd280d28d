import pytest
import torch
from omegaconf import OmegaConf

from et.inpainting.fill_baselines import nearest_fill
from et.inpainting.lit import InpaintingTask, MeanPerSeed, reconstruction_loss
from et.inpainting.model import InpaintingET
from et.inpainting.patches import mask_first_patch, patchify
from et.training.run import train
from tests.configs import TINY


def test_losses_of_paper_and_released_code():
    prediction, target = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    occluded = torch.tensor([[True, True, False, False]] * 2)
    assert reconstruction_loss(prediction, target, occluded, "paper") == pytest.approx(1.0)
    assert reconstruction_loss(prediction, target, occluded, "released").item() == pytest.approx(0.5**0.5)


def test_first_patch_is_masked_where_an_occluded_patch_stays_visible():
    occluded = torch.tensor([[False, True, True, True], [False, True, True, True], [True, True, False, False]])
    masked = torch.tensor([[False, True, True, False], [False, True, True, True], [False, True, False, False]])
    expected = masked.clone()
    expected[0, 0] = expected[2, 0] = True
    before = masked.clone()
    assert torch.equal(mask_first_patch(masked, occluded), expected) and torch.equal(masked, before)


@pytest.mark.parametrize(
    ("fidelity", "option", "hidden"),
    [("paper", None, False), ("released", None, True), ("paper", True, True), ("released", False, False)],
)
def test_training_alone_hides_the_first_patch(fidelity, option, hidden):
    class Recorder(torch.nn.Module):
        patch_size, masks = (4, 4), []

        def forward(self, images, masked):
            self.masks.append(masked)
            return torch.zeros(len(images), 4, 48)

    network = Recorder()
    task = InpaintingTask(network, OmegaConf.create({}), fidelity, mask_first_patch=option)
    task.log = lambda *args, **kwargs: None
    occluded, masked = torch.tensor([[[False, True, True, True]], [[False, True, True, False]]])
    batch = {"image": torch.ones(1, 3, 8, 8), "occluded": occluded, "masked": masked, "index": torch.zeros(1).long()}
    loss = task.training_step(batch, 0)
    assert network.masks.pop()[0, 0] == hidden
    assert loss.item() == pytest.approx(1.0 if fidelity == "paper" else 0.75**0.5)  # of the occluded patches alone
    task.validation_step(batch, 0)
    assert not network.masks.pop()[0, 0] and not masked[0, 0]


def test_mean_per_seed():
    metric = MeanPerSeed(3)
    values, seeds = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([0, 0, 2, 2])
    metric.update(values[:3], seeds[:3])
    metric.update(values[3:], seeds[3:])
    found = metric.compute()
    assert found["mean"] == 4
    assert found["std_masks"].item() == pytest.approx(torch.tensor([2.0, 6.0]).std().item())
    assert found["std_images"].item() == pytest.approx(values.std(unbiased=False).item())


def test_compiling_keeps_the_names_of_the_weights():
    def task(compile):
        network = InpaintingET(8, 4, dim=8, num_heads=1, head_dim=4, num_memories=8, steps=1)
        return InpaintingTask(network, OmegaConf.create({}), compile=compile)

    assert task(True).network._compiled_call_impl is not None
    assert task(True).state_dict().keys() == task(False).state_dict().keys()


def test_comparison_with_the_fillings_says_who_wins():
    metrics = {"test/mse_masked": 0.1, "test/mse_nearest_fill": 0.2, "test/mse_mean_fill": 0.08}
    sentence = InpaintingTask.summary({"metrics": metrics})
    assert "50% lower than copying the nearest visible patch (0.200)" in sentence
    assert "25% higher than the mean of the visible pixels (0.080)" in sentence
    assert InpaintingTask.summary({"metrics": {"test/mse_masked": 0.1}}) is None


def test_training_starts_from_the_weights_of_another_run_at_another_size(config):
    first = train(config(*TINY, "trainer.max_epochs=1"))
    start = [f"task.init_weights={first.folder}", "optim.schedule.warmup_epochs=0"]
    same = train(config(*TINY, *start, "trainer.max_epochs=0"))
    for name in ("test/mse", "test/psnr"):
        assert same.record["metrics"][name] == pytest.approx(first.record["metrics"][name], rel=1e-6)
    larger = train(config(*TINY, *start, "trainer.max_epochs=0", "data.image_size=120"))
    before, after = (outcome.task.network for outcome in (first, larger))
    assert torch.equal(before.block.hopfield.memories, after.block.hopfield.memories)
    assert after.position.shape == (10, 16) and torch.equal(before.position[0], after.position[0])


def test_the_trivial_answer_copies_the_nearest_visible_patch():
    task = InpaintingTask(
        InpaintingET(4, 2, channels=1, dim=8, num_heads=1, head_dim=4, num_memories=8, steps=1), OmegaConf.create({})
    )
    images, masked = torch.rand(3, 1, 4, 4), torch.tensor([[True, False, False, True]] * 3)
    batches = [{"image": image[None], "masked": mask[None]} for image, mask in zip(images, masked, strict=True)]
    answers = task.trivial_answers(torch.cat([task.trivial_inputs(batch) for batch in batches]))
    target = patchify(images, 2)
    error = (nearest_fill(target, masked, (2, 2)) - target)[masked].square().mean()
    assert answers["val/mse_masked"][1] == pytest.approx(float(error))
