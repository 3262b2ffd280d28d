"""A second implementation of the image model, in float64 and by einsum alone, and the fixture that it makes.

``python -m tests.integrations.einsum_reference`` writes tests/fixtures/published.npz from the published weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from et.inpainting.patches import draw_masks
from et.inpainting.photos import load_photo
from et.training.sampler import sample_rng

FIXTURE = Path(__file__).parents[1] / "fixtures" / "published.npz"
SAMPLED_TOKENS = (0, 1, 57, 98, 131, 196)  # of 197, the first is CLS
SAMPLED_DIMS = (0, 100, 255, 511, 767)


def sample() -> tuple[np.ndarray, np.ndarray]:
    """An embedded photograph, (224, 224, 3) uint8, and its hidden patches, (196,) bool: 90 of 100 occluded ones."""
    return load_photo("chelsea")[40:264, 120:344], draw_masks(sample_rng(0, 0, 0), 196, 100, 10)[1].numpy()


def descend(weights, photo, masked, patch=16, steps=12, alpha=0.1, eps=1e-5):
    """Tokens (steps + 1, 1 + N, D) and energies of attention and Hopfield network (steps + 1, 2), in float64.

    ``weights`` are the arrays of a published checkpoint by name.
    """
    w = {name: np.asarray(array, dtype=np.float64) for name, array in weights.items()}
    pixels = (photo / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    rows, columns = photo.shape[0] // patch, photo.shape[1] // patch
    tiles = np.einsum("rhcwk->rckhw", pixels.reshape(rows, patch, columns, patch, -1))
    encoded = np.einsum("np,pd->nd", tiles.reshape(rows * columns, -1), w["Wenc"]) + w["Benc"]
    x = np.concatenate([w["CLS_token"][None], np.where(masked[:, None], w["MASK_token"], encoded)]) + w["POS_embed"]
    beta = 1 / np.sqrt(w["Wq"].shape[1])
    tokens, energies = [x], []
    for t in range(steps + 1):
        centred = x - x.mean(-1, keepdims=True)
        g = w["LNORM_gamma"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + w["LNORM_bias"]
        queries, keys = np.einsum("hyd,nd->hny", w["Wq"], g), np.einsum("hyd,nd->hny", w["Wk"], g)
        scores = beta * np.einsum("hqy,hky->hqk", queries, keys)
        top = scores.max(-1, keepdims=True)
        weight = np.exp(scores - top)
        total = weight.sum(-1, keepdims=True)
        attended = weight / total
        hidden = np.maximum(np.einsum("nd,dm->nm", g, w["Xi"]), 0)
        energies.append([-(np.log(total) + top).sum() / beta, -0.5 * (hidden**2).sum()])
        if t == steps:
            break
        update = np.einsum("hyd,hqk,hky->qd", w["Wq"], attended, keys, optimize=True)
        update += np.einsum("hyd,hqk,hqy->kd", w["Wk"], attended, queries, optimize=True)
        update += np.einsum("nm,dm->nd", hidden, w["Xi"])
        x = x + alpha * update
        tokens.append(x)
    return np.stack(tokens), np.array(energies)


def make_fixture(weights) -> dict[str, np.ndarray]:
    """What the fixture holds: energies, some numbers of some tokens, and the norm of every token, at every step."""
    tokens, energies = descend(weights, *sample())
    return {
        "energies": energies,
        "sampled": tokens[:, SAMPLED_TOKENS][..., SAMPLED_DIMS],
        "norms": np.linalg.norm(tokens, axis=-1),
    }


if __name__ == "__main__":
    from et.integrations.pretrained import find_weights

    with np.load(find_weights()) as published:
        np.savez_compressed(FIXTURE, **make_fixture(published))
