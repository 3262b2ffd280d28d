"""Splits out of a file's masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from et.anomaly.data import NodeDataModule
from et.anomaly.masks import masked_split
from et.utils.errors import UserError
from tests.anomaly.conftest import save_npz

PARTS = ("train", "val", "test")


def masks(columns: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Three disjoint masks over 200 nodes, (200, columns); the last 40 nodes are the anomalies."""
    parts = np.stack([np.random.default_rng(seed + column).integers(0, 4, 200) for column in range(columns)], 1)
    return {f"{name}_mask": parts == code for code, name in enumerate(PARTS)}


def saved(tmp_path, graph, **found):
    data = Data(x=graph.features, y=graph.labels, edge_index=graph.relations["first"])
    for key, value in found.items():
        data[key] = torch.as_tensor(value)
    torch.save(data, tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def test_a_data_with_masks_trains_on_them(tmp_path, graph):
    found = {key: value[:, 0] for key, value in masks().items()}
    data = NodeDataModule("file", "", path=saved(tmp_path, graph, **found), split="masks")
    data.setup()
    for code, name in enumerate(PARTS, start=1):
        assert np.array_equal(data.parts().numpy() == code, found[f"{name}_mask"])
    assert data.describe()["split"] == "masks of the file"
    assert data.describe()["train_ratio"] == found["train_mask"].mean()


def test_other_masks_are_other_data(tmp_path, graph):
    """A finished run is of its file's masks: with others it is another run's data."""
    hashes = set()
    for seed in (0, 1):
        path = saved(tmp_path, graph, **{key: value[:, 0] for key, value in masks(seed=seed).items()})
        data = NodeDataModule("file", "", path=path, split="masks")
        data.setup()
        hashes.add(data.describe()["sha256"])
    assert len(hashes) == 2


@pytest.mark.parametrize("ending", ["pt", "npz", "npz, turned"])
def test_the_seed_picks_a_column(tmp_path, graph, ending):
    found = masks(3)
    if ending == "pt":
        path = saved(tmp_path, graph, **found)
    else:
        turned = {f"{key}s": value.T if ending != "npz" else value for key, value in found.items()}
        path = save_npz(graph, tmp_path / "a.npz", **turned)
    split = masked_split(path, graph.labels.numpy(), seed=2)
    assert split.train.tolist() == np.flatnonzero(found["train_mask"][:, 2]).tolist()
    with pytest.raises(UserError, match="3 splits, seed=0 to seed=2, and none for seed=3"):
        masked_split(path, graph.labels.numpy(), seed=3)


def test_the_second_ten_of_twenty_are_semi_supervised(tmp_path, graph):
    found, labels = masks(20), graph.labels.numpy()
    path = saved(tmp_path, graph, **found)
    for semi, column in ((False, 4), (True, 14)):
        assert masked_split(path, labels, 4, semi).val.tolist() == np.flatnonzero(found["val_mask"][:, column]).tolist()
    with pytest.raises(UserError, match="10 splits"):
        masked_split(path, labels, 10)


def test_an_official_mask_beside_those_of_the_trials_is_not_taken(tmp_path, graph):
    """As GADBench's files of graphs with an official split are."""
    trials = {f"{key}s": value for key, value in masks(20).items()}
    official = {key: value[:, 0] for key, value in masks(seed=99).items()}
    path = saved(tmp_path, graph, **official, **trials)
    for semi, column in ((False, 3), (True, 13)):
        found = masked_split(path, graph.labels.numpy(), 3, semi)
        assert found.train.tolist() == np.flatnonzero(trials["train_masks"][:, column]).tolist()


def test_unlabelled_nodes_are_in_no_part(tmp_path, graph):
    labels = graph.labels.numpy().copy()
    labels[:20] = -1
    split = masked_split(saved(tmp_path, graph, **masks()), labels, 0)
    assert min(split.train.min(), split.val.min(), split.test.min()) >= 20


def test_masks_of_a_dgl_file(tmp_path, graph, monkeypatch):
    monkeypatch.setenv("DGLBACKEND", "pytorch")
    dgl = pytest.importorskip("dgl", reason="dgl is not installed")
    source, target = graph.relations["first"]
    saved_graph, found = dgl.graph((source, target), num_nodes=200), masks(20)
    saved_graph.ndata.update({"feature": graph.features, "label": graph.labels, "mark": torch.arange(200) >= 20})
    saved_graph.ndata.update({f"{key}s": torch.from_numpy(value) for key, value in found.items()})
    (tmp_path / "node" / "gadbench").mkdir(parents=True)
    dgl.save_graphs(str(tmp_path / "node" / "gadbench" / "weibo"), [saved_graph])
    data = NodeDataModule("gadbench_weibo", tmp_path, split="masks", seed=1, semi_supervised=True, protocol="gadbench")
    data.setup()
    expected = found["test_mask"][:, 11] & (np.arange(200) >= 20)
    assert np.array_equal(data.parts().numpy() == 3, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_mask": None}, "lacks val_mask, which data.split=masks takes; of masks it has test_mask, train_mask"),
        ({"val_mask": np.ones(199, bool)}, r"val_mask of .* is \(199,\), but the graph has 200 nodes"),
        ({"val_mask": np.ones(200, bool)}, "nodes are in both the train and the val part, for example node"),
        (
            {"val_mask": np.arange(200)},
            "must hold true and false, or 0 and 1, but holds 2: node ids are no mask",
        ),
        ({"val_mask": np.full(200, 0.5)}, r"must hold true and false, or 0 and 1, but holds 0\.5"),
        ({"test_mask": np.zeros(200, bool)}, "the test part holds no benign node that is labelled"),
        ({"test_mask": np.arange(200) < 0, "val_mask": np.arange(200) < 0}, "the val part holds no"),
    ],
)
def test_masks_that_cannot_be_meant_are_errors(tmp_path, graph, changes, message):
    found = {key: value for key, value in (masks() | changes).items() if value is not None}
    with pytest.raises(UserError, match=message):
        masked_split(saved(tmp_path, graph, **found), graph.labels.numpy(), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_masks_of_zeros_and_ones_are_masks(tmp_path, graph, dtype):
    found = {key: torch.as_tensor(value[:, 0]) for key, value in masks().items()}
    split = masked_split(saved(tmp_path, graph, **found), graph.labels.numpy(), 0)
    numbers = {key: value.to(dtype) for key, value in found.items()}
    again = masked_split(saved(tmp_path, graph, **numbers), graph.labels.numpy(), 0)
    assert again.sha256(200) == split.sha256(200)


def test_masks_that_are_no_arrays_are_errors(tmp_path, graph):
    ragged = {"x": graph.features, "y": graph.labels, "edge_index": graph.relations["first"]}
    torch.save(ragged | {f"{name}_mask": [[True], [True, False]] for name in PARTS}, tmp_path / "a.pt")
    objects = {f"{name}_mask": np.array([True, None] * 100, dtype=object) for name in PARTS}
    for path in (tmp_path / "a.pt", save_npz(graph, tmp_path / "a.npz", **objects)):
        with pytest.raises(UserError, match=r"is no array of true and false|holds Python objects"):
            masked_split(path, graph.labels.numpy(), 0)


def test_one_mask_has_no_semi_supervised_half(tmp_path, graph):
    path = saved(tmp_path, graph, **{key: value[:, 0] for key, value in masks().items()})
    with pytest.raises(UserError, match=r"has 1 columns; data\.semi_supervised=true needs the 20 of GADBench"):
        masked_split(path, graph.labels.numpy(), 0, semi_supervised=True)


def test_masks_that_a_drawn_split_does_not_take_are_told(tmp_path, graph):
    path = saved(tmp_path, graph, **masks())
    data = NodeDataModule("file", "", path=path)
    with pytest.warns(
        UserWarning, match="has train_mask, val_mask, test_mask, unused: data.split=masks takes its parts"
    ):
        data.setup()
    assert any("unused" in warning for warning in data.describe()["warnings"])


def test_other_keys_with_mask_in_their_name_are_not_of_a_split(tmp_path, graph, recwarn):
    path = save_npz(graph, tmp_path / "a.npz", mask_note=np.array([{}], dtype=object), train_mask=np.ones(200, bool))
    data = NodeDataModule("file", "", path=path)
    data.setup()
    assert not [told for told in (*data.describe()["warnings"], *recwarn) if "unused" in str(told)]


def test_a_part_without_anomalies_is_an_error(tmp_path, graph):
    found = masks()
    found["test_mask"] &= (np.arange(200) < 160)[:, None]
    with pytest.raises(UserError, match="the test part holds no anomalous node that is labelled"):
        masked_split(saved(tmp_path, graph, **found), graph.labels.numpy(), 0)
