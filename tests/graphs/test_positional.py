"""Laplacian eigenvectors: golden numbers, the eigenvalue equation, padding, the cache, signs."""

import numpy as np
import pytest
import torch

from et.graphs import positional
from et.graphs.positional import flip_signs, laplacian_eigenvectors, with_eigenvectors


def test_golden_eigenvectors(golden):
    fixture = golden("weighted")
    adjacency, expected = fixture["adjacency"], fixture["laplacian_pe_abs"]
    edge_index = adjacency[1:, 1:].nonzero().T.numpy()
    found = torch.from_numpy(np.abs(laplacian_eigenvectors(edge_index, 6, 5))).double()
    # Columns 1 and 2 belong to a repeated eigenvalue, so only the length of their rows is determined.
    assert torch.allclose(found[:, [0, 3, 4]], expected[:, [0, 3, 4]], atol=1e-6)
    assert torch.allclose(found[:, 1:3].norm(dim=1), expected[:, 1:3].norm(dim=1), atol=1e-6)


def test_they_are_eigenvectors_after_the_first_and_orthonormal():
    rng = np.random.default_rng(0)
    joined = np.triu(rng.random((12, 12)) < 0.3, 1)
    edge_index = np.stack(np.nonzero(joined | joined.T))
    found = laplacian_eigenvectors(edge_index, 12, 5).astype(np.float64)
    adjacency = np.ones((13, 13))
    adjacency[1:, 1:] = joined | joined.T
    scale = 1 / np.sqrt(adjacency.sum(1))
    laplacian = np.eye(13) - scale[:, None] * adjacency * scale
    values = np.sort(np.linalg.eigvalsh(laplacian))
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert np.allclose(laplacian @ found, found * values[1:6], atol=1e-6)
    assert np.allclose(found.T @ found, np.eye(5), atol=1e-6)


def test_small_graphs_are_padded_with_zeros_on_the_right():
    found = laplacian_eigenvectors(np.zeros((2, 0), dtype=int), 2, 5)
    assert found.shape == (3, 5)
    assert np.abs(found[:, :2]).max() > 0.1
    assert (found[:, 2:] == 0).all()
    assert (laplacian_eigenvectors(np.zeros((2, 0), dtype=int), 0, 3) == 0).all()


def test_one_way_edges_count_for_both():
    one_way, both = np.array([[0, 1], [1, 2]]), np.array([[0, 1, 1, 2], [1, 2, 0, 1]])
    assert np.array_equal(laplacian_eigenvectors(one_way, 4, 3), laplacian_eigenvectors(both, 4, 3))


def test_cache_is_read_and_a_damaged_file_is_made_anew(make_graphs, tmp_path, monkeypatch):
    graphs = make_graphs()
    first = with_eigenvectors(graphs, 4, tmp_path).pe
    (file,) = (tmp_path / "laplacian").iterdir()
    monkeypatch.setattr(positional, "_compute", lambda *args: pytest.fail("the cache was not used"))
    assert torch.equal(with_eigenvectors(graphs, 4, tmp_path).pe, first)
    monkeypatch.undo()
    whole = file.read_bytes()
    for damaged in (whole[:-40], b""):
        file.write_bytes(damaged)
        assert torch.equal(with_eigenvectors(graphs, 4, tmp_path).pe, first)
        assert file.read_bytes() == whole
    with_eigenvectors(make_graphs(seed=1), 4, tmp_path)
    with_eigenvectors(graphs, 3, tmp_path)
    assert len(list((tmp_path / "laplacian").iterdir())) == 3  # other graphs, and another k, are other files


def test_processes_find_the_same(make_graphs, monkeypatch):
    graphs = make_graphs(sizes=(12, 15, 9) * 4)
    expected = with_eigenvectors(graphs, 4).pe
    monkeypatch.setattr(positional, "WORTH_PROCESSES", 0)
    assert torch.equal(with_eigenvectors(graphs, 4).pe, expected)


def test_signs_flip_per_graph_and_eigenvector():
    torch.manual_seed(0)
    flipped = flip_signs(torch.ones(5, 40), torch.tensor([3, 2]))
    assert set(flipped.unique().tolist()) == {-1.0, 1.0}
    assert (flipped[:3] == flipped[0]).all() and (flipped[3:] == flipped[3]).all()
    assert not torch.equal(flipped[0], flipped[3])


def test_the_released_code_flips_entries_alike_in_all_graphs():
    torch.manual_seed(0)
    flipped = flip_signs(torch.ones(5, 40), torch.tensor([3, 2]), "entries")
    assert set(flipped.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(flipped[:2], flipped[3:]) and not torch.equal(flipped[0], flipped[1])
