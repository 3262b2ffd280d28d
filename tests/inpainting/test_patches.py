import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from et.inpainting.patches import draw_masks, grid_shape, patchify, unpatchify


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), height=st.integers(1, 5), width=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_unpatchify_undoes_patchify(rows, columns, height, width):
    images = torch.randn(2, 3, rows * height, columns * width)
    patches = patchify(images, (height, width))
    assert patches.shape == (2, rows * columns, 3 * height * width)
    assert torch.equal(unpatchify(patches, (height, width), images.shape[-2:]), images)


def test_patches_run_row_by_row_and_flatten_channel_first():
    images = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    patches = patchify(images, 2)
    assert torch.equal(patches[0, 1], images[0, :, 0:2, 2:4].flatten())
    assert torch.equal(patches[0, 3], images[0, :, 2:4, 0:2].flatten())


def test_an_image_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        grid_shape(224, 15)


@given(n=st.integers(1, 60), data=st.data())
@settings(max_examples=50, deadline=None)
def test_masks_have_the_counts_asked_for(n, data):
    occluded_count = data.draw(st.integers(0, n))
    kept = data.draw(st.integers(0, occluded_count))
    occluded, masked = draw_masks(np.random.default_rng(0), n, occluded_count, kept)
    assert occluded.sum() == occluded_count and masked.sum() == occluded_count - kept
    assert not (masked & ~occluded).any()


def test_every_patch_is_occluded_equally_often():
    rng = np.random.default_rng(0)
    share = torch.stack([draw_masks(rng, 20, 10, 1)[0] for _ in range(4000)]).float().mean(0)
    assert (share - 0.5).abs().max() < 0.05
