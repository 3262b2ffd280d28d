"""The data module: what the configuration promises, parts, batches, provenance."""

import dataclasses

import pytest
import torch
from torch_geometric.data import Data

from et.graphs import data as data_module
from et.graphs.counts import check_counts
from et.graphs.data import GraphData
from et.graphs.features import encode_types, standardized
from et.utils.errors import UserError
from et.utils.features import as_features


@pytest.fixture
def toy(tmp_path, make_tu):
    make_tu(tmp_path, attributes=True)

    def build(**changes) -> GraphData:
        arguments = {"num_features": 5, "num_edge_features": 2, "num_classes": 2, "num_eigenvectors": 4}
        arguments |= {"batch_size": 6, "folds": 5}
        data = GraphData(**({"name": "TOY", "source": "tu", "root": tmp_path} | arguments | changes))
        data.setup()
        return data

    return build


def graphs_of(loader) -> list[int]:
    """Sizes of all graphs a loader gives, which with their labels tell the toy graphs apart well enough."""
    return [size for batch in loader for size in batch.sizes.tolist()]


def test_parts_are_disjoint_and_batches_cover_them(toy):
    data = toy()
    assert torch.equal(torch.cat(list(data.split.values())).sort().values, torch.arange(40))
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    for part, loader in loaders.items():
        batches = list(loader)
        assert sum(len(batch) for batch in batches) == len(data.split[part])
        assert all(len(batch) == 6 for batch in batches[:-1])
        assert sorted(graphs_of(batches)) == sorted(data.graphs.sizes[data.split[part]].tolist())


def test_training_order_changes_with_the_epoch_and_evaluation_order_does_not(toy):
    data = toy()
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([batch.x for batch in loader]))
    assert not torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])
    first, again = (torch.cat([batch.x for batch in data.test_dataloader()]) for _ in range(2))
    assert torch.equal(first, again)


def test_released_protocol_trains_on_everything(toy):
    data = toy(protocol="released")
    assert {part: len(numbers) for part, numbers in data.split.items()} == {"train": 40, "val": 0, "test": 40}
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_features": 4}, "it says num_features=4: set data.num_features=5.*out of range"),
        ({"num_edge_features": 3}, "num_edge_features=3"),
        ({"folds": 50}, "too few for 50 folds"),
        (
            {"num_features": 4, "num_edge_features": 3, "num_classes": 7},
            "set data.num_features=5 data.num_edge_features=2 data.num_classes=2",
        ),
        ({"protocol": "honest"}, "protocol"),
        ({"source": "nosuch"}, "data.source"),
    ],
)
def test_a_configuration_that_the_data_contradicts_is_refused(toy, wrong, message):
    with pytest.raises(UserError, match=message):
        toy(**wrong)


def test_node_label_out_of_range_is_refused(tmp_path, make_tu):
    raw = make_tu(tmp_path)
    lines = (raw / "TOY_node_labels.txt").read_text().splitlines()
    (raw / "TOY_node_labels.txt").write_text("\n".join(["7", *lines[1:]]) + "\n")
    data = GraphData("TOY", "tu", tmp_path, num_features=3, num_edge_features=2, num_classes=2)
    with pytest.raises(UserError, match="label out of range"):
        data.setup()


def test_class_label_out_of_range_is_refused(make_graphs):
    stated = {"num_features": 5, "num_edge_features": 2, "num_classes": 2}
    with pytest.raises(UserError, match=r"labels 0 \.\. 2"):
        check_counts(make_graphs(num_classes=3, features=5, edge_features=2), "TOY", "generated", stated)
    broken = make_graphs(features=5, edge_features=2)
    broken.x[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        check_counts(broken, "TOY", "generated", stated)


def test_counts_that_are_left_open_are_those_of_the_data(toy):
    data = toy(num_features=None, num_edge_features=None, num_classes=None)
    found = {"num_features": 5, "num_edge_features": 2, "num_classes": 2}
    assert data.counts() == found and {key: getattr(data, key) for key in found} == found


@pytest.mark.parametrize("name", ["batch_size", "num_eigenvectors", "max_nodes", "num_features", "num_classes"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True])
def test_sizes_that_are_none_are_refused_by_name(toy, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least 1, not {value}"):
        toy(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("fold", 1.5), ("fold", -1), ("folds", 2.5), ("folds", 0)])
def test_a_fold_is_a_whole_number(toy, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number"):
        toy(**{name: value})


def test_a_folder_and_a_list_of_the_same_graphs_are_standardised_alike(toy, tmp_path):
    """One's own data are, unless it is said that they are not; the record tells."""
    folder = toy(standardize=None)
    graphs = []
    for number in range(40):
        one = toy(standardize=False).graphs.select([number])
        graphs.append(Data(x=one.x, edge_index=one.edge_index, edge_attr=one.edge_attr, y=one.y))
    torch.save(graphs, tmp_path / "mine.pt")
    for fidelity in ("paper", "released"):
        listed = toy(source="file", path=tmp_path / "mine.pt", name=None, standardize=None, fidelity=fidelity)
        assert torch.equal(listed.graphs.x, folder.graphs.x) and listed.describe()["standardized"]
    assert not toy(standardize=False).describe()["standardized"]


@pytest.mark.parametrize(
    ("name", "experiment", "standardize"), [("MUTAG", "tu_mutag", False), ("TOY", "tu_mutag", None)]
)
def test_the_configuration_of_a_published_set_leaves_another_folder_to_the_rule(config, name, experiment, standardize):
    assert config(f"experiment={experiment}", f"data.name={name}").data.standardize is standardize


def test_features_beside_a_large_offset_are_standardised_in_float64(make_graphs):
    graphs = make_graphs(sizes=(30, 40, 50))
    near = standardized(graphs, torch.arange(3)).x
    shifted = dataclasses.replace(graphs, x=as_features(graphs.x.double() + 1.7e9))
    assert shifted.x.dtype == torch.float64
    assert torch.allclose(standardized(shifted, torch.arange(3)).x, near, atol=1e-4)


def test_a_class_that_the_training_list_lacks_is_told(toy, tmp_path):
    def save(train: list[int]):
        def graph(label):
            return Data(x=torch.rand(3, 2), edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor(label))

        parts = {"train": train, "val": [0, 1], "test": [0, 1, 2]}
        torch.save({part: [graph(label) for label in labels] for part, labels in parts.items()}, tmp_path / "mine.pt")
        return {"source": "file", "path": tmp_path / "mine.pt", "num_features": 2, "num_edge_features": 0}

    with pytest.raises(UserError, match="'train' of TOY has no graph of class 2, which other lists have"):
        toy(**save([0, 1, 1, 0]), num_classes=3)
    with pytest.warns(UserWarning, match="'val' of TOY has no graph of class 2"):
        data = toy(**save([0, 1, 2, 0]), num_classes=3)
    assert data.describe()["absent_classes"] == {"val": [2]}


@pytest.mark.parametrize(
    "kind, message, columns",
    [
        ("node_labels", "says num_features=5: set data.num_features=2.*a missing file", {"num_features": 2}),
        ("node_attributes", "says num_features=5: set data.num_features=3.*a missing file", {"num_features": 3}),
        (
            "edge_labels",
            "says num_edge_features=2: set data.num_edge_features=0.*a missing file",
            {"num_edge_features": 0},
        ),
    ],
)
def test_without_an_optional_file_the_configuration_must_say_so(toy, tmp_path, kind, message, columns):
    (tmp_path / "tu" / "TOY" / "raw" / f"TOY_{kind}.txt").unlink()
    with pytest.raises(UserError, match=message):
        toy()
    graphs = toy(**columns).graphs
    assert graphs.x.shape[1] == columns.get("num_features", 5) and (graphs.edge_attr is None) == (kind == "edge_labels")


def test_labels_of_one_class_are_told(toy, tmp_path):
    (tmp_path / "tu" / "TOY" / "raw" / "TOY_graph_labels.txt").write_text("1\n" * 40)
    with pytest.raises(UserError, match="every graph of TOY is of class 0: there is nothing to tell apart"):
        toy()


def test_node_limit_applies_to_the_released_fidelity_only(toy):
    assert int(toy(max_nodes=5).graphs.sizes.max()) == 7
    limited = toy(max_nodes=5, fidelity="released").graphs
    assert int(limited.sizes.max()) == 5
    assert len(limited.pe) == limited.num_nodes + len(limited)


def test_the_description_tells_of_nodes_that_were_left_out(toy):
    assert "cut_to_nodes" not in toy(max_nodes=5).describe()
    assert "cut_to_nodes" not in toy(max_nodes=7, fidelity="released").describe()
    limited = toy(max_nodes=5, fidelity="released").describe()
    assert limited["cut_to_nodes"] == 5 and limited["sha256"] == toy().describe()["sha256"]


def test_standardization_uses_training_graphs_and_leaves_one_hot_columns(toy):
    data, plain = toy(standardize=True), toy()
    seen = data.graphs.select(data.split["train"]).x
    assert torch.allclose(seen[:, :2].mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(seen[:, :2].std(0), torch.ones(2), atol=1e-5)
    assert torch.equal(data.graphs.x[:, 2:], plain.graphs.x[:, 2:])


def test_constant_columns_are_only_shifted(make_graphs):
    graphs = make_graphs()
    graphs.x[:, 1] = 0.1  # no exact float32: its mean may differ from it by rounding
    unseen = graphs.ptr[-2]
    graphs.x[unseen:, 1] = 0.2
    x = standardized(graphs, torch.arange(len(graphs) - 1)).x
    assert x[:unseen, 1].abs().max() < 1e-6 and torch.allclose(x[unseen:, 1], torch.tensor(0.1))


def test_types_as_one_hot_columns(make_graphs):
    graphs = make_graphs(features=1, edge_features=1)
    graphs.x[:] = torch.arange(graphs.num_nodes)[:, None] % 4
    graphs.edge_attr[:] = 2
    coded = encode_types(graphs, 4, 3)
    assert torch.equal(coded.x.argmax(1), graphs.x[:, 0].long()) and coded.x.shape[1] == 4
    assert coded.edge_attr.shape[1] == 3 and (coded.edge_attr[:, 2] == 1).all()
    with pytest.raises(UserError, match=r"types 0 \.\. 3"):
        encode_types(graphs, 3, 3)
    graphs.x[0] = 0.7
    with pytest.raises(UserError, match="whole numbers, and x is not"):
        encode_types(graphs, 4, 3)
    bare = make_graphs(features=1)
    bare.x[:] = 0
    assert encode_types(bare, 4, 0).edge_attr is None


def test_description_tells_what_was_used(toy):
    first, other = toy(fold=0).describe(), toy(fold=1).describe()
    assert first["name"] == "TOY" and first["variant"].startswith("user data") and len(first["sha256"]) == 64
    assert first["num_graphs"] == 40 and first["split"] == {"train": 28, "val": 4, "test": 8}
    assert first["sha256"] == other["sha256"]
    assert first["split_sha256"]["test"] != other["split_sha256"]["test"]


def test_a_batch_moves_as_a_whole(make_graphs):
    batch = make_graphs()
    moved = batch.to("meta")
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            assert getattr(moved, field.name).device.type == "meta" and value.device.type == "cpu"
        else:
            assert getattr(moved, field.name) is value


def test_a_fold_is_refused_where_nothing_has_folds(toy):
    with pytest.raises(UserError, match=r"data\.fold=3, but protocol=released"):
        toy(fold=3, protocol="released")
    with pytest.raises(UserError, match=r"data\.fold=3, but PATTERN has an official split"):
        toy(name="PATTERN", source="generated", num_features=3, num_edge_features=0, sizes=[8, 4, 4], fold=3, folds=10)


def test_every_process_has_a_graph_of_every_part(toy, monkeypatch):
    smallest = min(map(len, toy().split.values()))
    monkeypatch.setattr(data_module, "rank_and_world", lambda: (0, smallest))
    toy()
    monkeypatch.setattr(data_module, "rank_and_world", lambda: (0, smallest + 1))
    with pytest.raises(UserError, match=f"has {smallest} graphs for {smallest + 1} processes: lower trainer.devices"):
        toy()


def test_workers_give_the_same_batches(toy):
    alone, helped = toy().test_dataloader(), toy(num_workers=1).test_dataloader()
    for mine, theirs in zip(alone, helped, strict=True):
        assert torch.equal(mine.x, theirs.x) and torch.equal(mine.edge_index, theirs.edge_index)


@pytest.mark.parametrize(
    ("source", "folder", "files"),
    [
        ("tu", "tu/TOY/raw", ["TOY_A.txt", "TOY_graph_indicator.txt", "TOY_graph_labels.txt"]),
        ("gnnbench", "gnnbench/TOY/raw", ["TOY_v2.pt"]),
        ("extracted", "mnist", ["train.npz", "test.npz"]),
        ("zinc_variant", "zinc", ["zinc12k_variant.npz"]),
    ],
)
def test_missing_names_the_place_without_fetching(tmp_path, source, folder, files):
    data = GraphData("TOY", source, tmp_path, num_features=5, num_edge_features=0, num_classes=2)
    assert data.missing() == [str(tmp_path / folder)]
    (tmp_path / folder).mkdir(parents=True)
    for left in range(len(files)):
        assert data.missing() == [str(tmp_path / folder / file) for file in files[left:]]
        (tmp_path / folder / files[left]).touch()
    assert data.missing() == []


def test_embedded_and_generated_data_miss_nothing(tmp_path):
    for source in ("digits", "generated"):
        assert GraphData("any", source, tmp_path, 1, 0, 10).missing() == []


def test_made_datas_options_are_refused_elsewhere(toy):
    for option in ({"sizes": [8, 4, 4]}, {"made_seed": 3}):
        with pytest.raises(UserError, match=r"data\.sizes and data\.made_seed"):
            toy(**option)
