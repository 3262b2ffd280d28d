import torch

from et.inpainting.fill_baselines import mean_fill, nearest_fill


def test_mean_fill_is_the_visible_mean_of_each_channel():
    patches = torch.tensor([[[1.0, 3.0, 10.0, 10.0], [5.0, 7.0, 20.0, 20.0], [99.0, 99.0, 99.0, 99.0]]])
    masked = torch.tensor([[False, False, True]])
    filled = mean_fill(patches, masked, channels=2)
    assert torch.equal(filled[0, 2], torch.tensor([4.0, 4.0, 15.0, 15.0]))
    assert torch.equal(filled[0, :2], patches[0, :2])


def test_nearest_fill_copies_the_nearest_visible_patch():
    patches = torch.arange(6.0).reshape(1, 6, 1)  # a grid of 2 x 3
    masked = torch.tensor([[False, True, True, True, True, True]])
    assert torch.equal(nearest_fill(patches, masked, (2, 3)), torch.zeros(1, 6, 1))
    masked = torch.tensor([[False, True, True, True, True, False]])
    assert nearest_fill(patches, masked, (2, 3)).flatten().tolist() == [0, 0, 5, 0, 5, 5]


def test_without_a_visible_patch_everything_is_zero():
    patches, masked = torch.randn(1, 4, 6), torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(mean_fill(patches, masked, 3), torch.zeros_like(patches))
    assert torch.equal(nearest_fill(patches, masked, (2, 2)), torch.zeros_like(patches))
