"""Generated, extracted and embedded data: their recipes, reproducibility, and what they say they are."""

import numpy as np
import pytest
import torch

from et.errors import UserError
from et.graphs.made import (
    cluster_graph,
    digit_graph,
    extract_superpixels,
    generate_block_models,
    load_digits,
    load_zinc_variant,
    pattern_graph,
    superpixel_graph,
)


def densities(make, count=60):
    """Mean share of joined pairs within and between communities, over many graphs, and their node counts."""
    inside, across, sizes = [], [], []
    for seed in range(count):
        x, edge_index, _, y = make(np.random.SeedSequence(seed))
        n = len(x)
        adjacency = np.zeros((n, n))
        adjacency[edge_index[0], edge_index[1]] = 1
        assert (adjacency == adjacency.T).all() and adjacency.trace() == 0
        same = y[:, None] == y
        pairs = ~np.eye(n, dtype=bool)
        inside.append(adjacency[same & pairs])
        across.append(adjacency[~same])
        sizes.append(n)
    return np.concatenate(inside).mean(), np.concatenate(across).mean(), np.array(sizes)


def test_cluster_follows_its_recipe():
    inside, across, sizes = densities(cluster_graph)
    assert inside == pytest.approx(0.55, abs=0.01) and across == pytest.approx(0.25, abs=0.01)
    assert sizes.min() >= 30 and sizes.max() <= 204 and sizes.mean() == pytest.approx(117, abs=10)
    x, _, _, y = cluster_graph(np.random.SeedSequence(0))
    shown = x.argmax(1)
    assert sorted(shown[shown > 0]) == [1, 2, 3, 4, 5, 6]
    assert (y[shown > 0] == shown[shown > 0] - 1).all()


def pattern_part(seeds):
    """Adjacency, labels and signals of a made graph."""
    x, edge_index, _, y = pattern_graph(seeds)
    adjacency = np.zeros((len(x), len(x)))
    adjacency[edge_index[0], edge_index[1]] = 1
    assert x.shape[1] == 3 and (x.sum(1) == 1).all() and y.sum() == 20
    return adjacency, y, x.argmax(1)


def test_pattern_follows_its_recipe():
    between, density, sizes, inner = [], [], [], []
    for seed in range(60):
        adjacency, y, _ = pattern_part((np.random.SeedSequence((seed, 1)), np.random.SeedSequence(seed)))
        between.append(adjacency[y == 1][:, y == 0].ravel())
        inner.append(adjacency[y == 1][:, y == 1].mean() * 20 / 19)
        density.append(adjacency.mean())
        sizes.append(len(y))
    assert np.concatenate(between).mean() == pytest.approx(0.5, abs=0.01)
    assert np.mean(inner) == pytest.approx(0.5, abs=0.03) and np.std(inner) > 0.01
    assert np.mean(sizes) == pytest.approx(118.9, abs=8)  # the published graphs: 118.9 nodes, 6,098.9 edges
    assert np.mean(density) == pytest.approx(6098.9 / 118.9**2, abs=0.02)


def test_a_pattern_recurs_in_other_graphs():
    seeds = [np.random.SeedSequence(seed) for seed in range(3)]
    found = []
    for own in seeds[1:]:
        adjacency, y, signal = pattern_part((seeds[0], own))
        degrees = adjacency[y == 1][:, y == 1].sum(1)
        found.append((len(y), sorted(zip(degrees, signal[y == 1], strict=True))))
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]


def test_patterns_are_shared_by_training_and_test(tmp_path):
    graphs = generate_block_models("PATTERN", tmp_path, seed=0, sizes=(101, 1, 1)).graphs
    patterns = []
    for number in (0, 100, 101, 102, 1):  # the first of each part, and the 101st of training, have pattern 0
        graph = graphs.select(torch.tensor([number]))
        inside = graph.edge_index[0, (graph.y[graph.edge_index] == 1).all(0)]
        degrees = torch.bincount(inside, minlength=graph.num_nodes)[graph.y == 1]
        patterns.append(sorted(zip(degrees.tolist(), graph.x[graph.y == 1].argmax(1).tolist(), strict=True)))
    assert patterns[0] == patterns[1] == patterns[2] == patterns[3] != patterns[4]


def test_generated_data_is_reproducible_cached_and_says_so(tmp_path):
    first = generate_block_models("CLUSTER", tmp_path / "a", seed=1, sizes=(5, 3, 2))
    again = generate_block_models("CLUSTER", tmp_path / "b", seed=1, sizes=(5, 3, 2))
    cached = generate_block_models("CLUSTER", tmp_path / "a", seed=1, sizes=(5, 3, 2))
    other = generate_block_models("CLUSTER", tmp_path / "a", seed=2, sizes=(5, 3, 2))
    assert first.sha256 == again.sha256 == cached.sha256 != other.sha256
    assert "generated" in first.variant and first.graphs.level == "node"
    assert [len(first.split[part]) for part in ("train", "val", "test")] == [5, 3, 2]
    (file,) = (path for path in (tmp_path / "a" / "made").iterdir() if "seed1" in path.name)
    file.write_bytes(b"damaged")
    assert generate_block_models("CLUSTER", tmp_path / "a", 1, (5, 3, 2)).sha256 == first.sha256
    with pytest.raises(UserError, match="PATTERN and CLUSTER"):
        generate_block_models("MNIST", tmp_path, 0)


def test_superpixels_of_one_image():
    rows, columns = np.indices((28, 28))
    image = (255 * np.exp(-((rows - 9) ** 2 + (columns - 18) ** 2) / 20)).astype(np.uint8)
    x, edge_index, edge_attr, label = superpixel_graph((image, 7))
    assert label == 7 and 30 < len(x) <= 75 and x.shape[1] == 3
    assert (np.bincount(edge_index[1], minlength=len(x)) == 8).all()  # eight keys for every query
    assert (edge_index[0] != edge_index[1]).all()
    assert ((edge_attr >= 0) & (edge_attr <= 1)).all()
    brightest = x[x[:, 0].argmax()]
    assert brightest[1] == pytest.approx(18 / 27, abs=0.1) and brightest[2] == pytest.approx(9 / 27, abs=0.1)


def test_superpixels_of_an_empty_image_are_still_a_graph():
    x, edge_index, edge_attr, _ = superpixel_graph((np.zeros((28, 28), np.uint8), 0))
    assert len(x) >= 1 and np.isfinite(edge_attr).all() and edge_index.shape[1] == len(edge_attr)


def test_extraction_takes_disjoint_parts_of_the_files(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "mnist").mkdir()
    for part, count in (("train", 12), ("test", 4)):
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 10
        np.savez(tmp_path / "mnist" / f"{part}.npz", x=images, y=labels.astype(np.uint8))
    source = extract_superpixels("MNIST", tmp_path, tmp_path / "cache", seed=0, sizes=(6, 3, 2))
    assert len(source.graphs) == 11 and "extracted" in source.variant
    assert source.graphs.x.shape[1] == 3 and source.graphs.edge_attr.shape[1] == 1
    assert len(source.split["val"]) == 3
    for sizes in ((10, 3, 2), (6, 3, 5)):
        with pytest.raises(UserError, match="more digits than there are"):
            extract_superpixels("MNIST", tmp_path, tmp_path / "cache", seed=0, sizes=sizes)
    (tmp_path / "mnist" / "test.npz").write_bytes((tmp_path / "mnist" / "test.npz").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"test\.npz is cut short"):
        extract_superpixels("MNIST", tmp_path, tmp_path / "cache", seed=0, sizes=(6, 3, 2))
    (tmp_path / "mnist" / "test.npz").unlink()
    with pytest.raises(UserError, match=r"test\.npz is missing"):
        extract_superpixels("MNIST", tmp_path, tmp_path / "cache", seed=0, sizes=(6, 3, 2))


def test_digits_need_no_files():
    source = load_digits()
    assert len(source.graphs) == 1797 and source.graphs.x.shape[1] == 3
    assert torch.bincount(source.graphs.y, minlength=10).min() > 170


def test_digit_graph_joins_neighbouring_ink():
    image = np.zeros((8, 8))
    image[0, 0], image[0, 1], image[1, 2], image[6, 6] = 16, 8, 4, 2
    x, edge_index, _, _ = digit_graph((image, 3))
    assert np.allclose(x, [[1, 0, 0], [0.5, 1 / 7, 0], [0.25, 2 / 7, 1 / 7], [0.125, 6 / 7, 6 / 7]])
    assert {tuple(e) for e in edge_index.T.tolist()} == {(0, 1), (1, 0), (1, 2), (2, 1)}


@pytest.mark.data
def test_zinc_variant_is_marked_as_such(data_root):
    source = load_zinc_variant(data_root)
    assert len(source.graphs) == 11_883 and "not comparable" in source.variant
    assert source.graphs.num_nodes / len(source.graphs) == pytest.approx(23.18, abs=0.01)
    assert torch.equal(torch.cat(list(source.split.values())).sort().values, torch.arange(11_883))


def test_zinc_variant_missing(tmp_path):
    with pytest.raises(UserError, match=r"zinc12k_variant\.npz is missing"):
        load_zinc_variant(tmp_path)
