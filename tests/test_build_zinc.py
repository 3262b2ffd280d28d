"""ZINC from SMILES: the benchmark's own graphs and labels, and files that its readers read."""

from __future__ import annotations

import itertools
import json
import lzma
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from et.graphs.sources import load_zinc
from et.runs.fingerprint import check_unseen
from et.runs.record import write_result
from et.training.evaluation import assemble
from et.utils.errors import UserError
from et.utils.plain_pickle import load_plain
from scripts import build_zinc
from scripts.build_zinc import Molecule, first_matching, largest_cycle
from tests.conftest import FIXTURES
from tests.runs import make_record

pytest.importorskip("rdkit")


def bonds_of(molecule: Molecule) -> Counter:
    """How often each (atom type, atom type, order) is in a molecule."""
    types, bonds, _ = molecule
    return Counter((types[i], types[j], int(bonds[i, j])) for i, j in np.argwhere(bonds))


def same_graph(first: Molecule, second: Molecule) -> bool:
    """Whether the two molecules are isomorphic with their atom types and bond orders."""
    import networkx

    graphs = []
    for types, bonds, _ in (first, second):
        graph = networkx.Graph()
        graph.add_nodes_from((i, {"type": name}) for i, name in enumerate(types))
        graph.add_edges_from((i, j, {"order": int(bonds[i, j])}) for i, j in np.argwhere(bonds).tolist())
        graphs.append(graph)
    return networkx.is_isomorphic(*graphs, lambda a, b: a["type"] == b["type"], lambda a, b: a["order"] == b["order"])


def assert_rebuilt(official: list[Molecule], smiles: list[str], other_kekule_form: set[str]) -> int:
    """All molecules have the benchmark's atoms, bonds and labels; the number of those in the benchmark's order."""
    in_order = 0
    for theirs, text in zip(official, smiles, strict=True):
        ours = build_zinc.build_molecule(text)
        assert sorted(ours[0]) == sorted(theirs[0]), text
        assert bonds_of(ours) == bonds_of(theirs), text
        assert abs(ours[2] - theirs[2]) < 1e-5, text
        equal = ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1])
        in_order += equal
        assert equal or same_graph(ours, theirs) != (text in other_kekule_form), text
    return in_order


# The same bonds, counted by the types of their atoms and their orders, but another Kekule form.
OTHER_FORM = {"CCN(Cc1ccc2c(c1)OCO2)C(=O)[C@@H]1C[C@@H]2C=C[C@H]1C2", "CCCCCCNC(=O)c1c([O-])n2c3c(cccc3c1=O)CCC2"}


@pytest.fixture(scope="module")
def sample() -> dict[str, np.ndarray]:
    """Some of the benchmark's validation molecules: SMILES, and the arrays of zinc12k_official_val.npz."""
    with np.load(FIXTURES / "zinc_official.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_a_sample_of_the_benchmark_is_rebuilt(sample):
    official = build_zinc.official_molecules(FIXTURES / "zinc_official.npz", sample["types"].tolist())
    in_order = assert_rebuilt(official, sample["smiles"].tolist(), OTHER_FORM)
    assert in_order >= len(official) - 8  # of a thousand these eight are not, and the sample has them all


@pytest.mark.data
@pytest.mark.slow
def test_the_official_validation_graphs_are_rebuilt(data_root):
    folder = data_root / "zinc"
    if not (folder / "zinc_splits.npz").exists():
        pytest.skip(f"{folder} has no ZINC to build")
    types = json.loads((folder / "zinc_atom_types.json").read_text())["types"]
    official = build_zinc.official_molecules(folder / "zinc12k_official_val.npz", types)
    with lzma.open(folder / "zinc_smiles.txt.xz", "rt") as file:
        smiles = file.read().split()
    splits = np.load(folder / "zinc_splits.npz")
    lines = splits["valid"][splits["subset_valid"]]
    assert len(official) == 1000
    assert assert_rebuilt(official, [smiles[line] for line in lines], OTHER_FORM) >= 990


def test_a_matching_is_the_first_of_all():
    """Against an enumeration of all perfect matchings of random graphs."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(60):
        joined = np.triu(rng.random((6, 6)) < 0.5, 1)
        pairs = np.argwhere(joined).tolist()
        neighbours = {i: np.flatnonzero(joined[i] | joined[:, i]).tolist() for i in range(6)}
        matchings = [
            chosen for chosen in itertools.combinations(map(tuple, pairs), 3) if len(set(sum(chosen, ()))) == 6
        ]
        if not matchings:
            with pytest.raises(ValueError, match="no perfect matching"):
                first_matching(neighbours)
            continue
        found += 1
        partner = first_matching(neighbours)
        assert tuple(sorted((i, j) for i, j in partner.items() if i < j)) == min(matchings)
    assert 10 < found < 60


def test_the_largest_cycle_is_of_the_basis_from_the_first_atom():
    import networkx

    def from_root(bonds: np.ndarray, root: int | None) -> int:
        return max(map(len, networkx.cycle_basis(networkx.Graph(bonds), root)), default=0)

    rng, others = np.random.default_rng(0), 0
    for _ in range(50):
        bonds = np.triu(rng.random((9, 9)) < 0.25, 1)
        bonds[0, 1:] |= ~(bonds | bonds.T)[1:].any(1)  # no atom alone
        bonds = (bonds | bonds.T).astype(np.uint8)
        if networkx.is_connected(networkx.Graph(bonds)):
            assert largest_cycle(bonds) == from_root(bonds, 0)
            others += from_root(bonds, None) != from_root(bonds, 0)
    assert others > 0, "another root is another basis"
    apart = np.zeros((10, 10), np.uint8)
    assert largest_cycle(apart) == 0
    for start, size in ((0, 3), (3, 7)):
        for i in range(size):
            j = (i + 1) % size
            apart[start + i, start + j] = apart[start + j, start + i] = 1
    assert largest_cycle(apart) == 7, "of all components"


@pytest.fixture
def folder(tmp_path: Path, sample) -> Path:
    """A data root's zinc folder to build from: the sample, of which 4 molecules test, 6 validate, all but 3 of these
    in the 12k subset."""
    folder, count = tmp_path / "zinc", len(sample["smiles"])
    folder.mkdir()
    with lzma.open(folder / "zinc_smiles.txt.xz", "wt") as file:
        file.write("\n".join(sample["smiles"]) + "\n")
    (folder / "zinc_atom_types.json").write_text(json.dumps({"types": sample["types"].tolist()}))
    np.savez(folder / "zinc_splits.npz", valid=np.arange(count - 6, count), test=np.array([3, 0, 1, 2]),
             subset_valid=np.array([5, 0, 2]), subset_test=np.array([1, 0]))  # fmt: skip
    return folder


@pytest.fixture
def in_this_process(monkeypatch):
    """Let the script build here: processes of its own take seconds to start."""
    mapped = build_zinc.parallel_map
    monkeypatch.setattr(
        build_zinc, "parallel_map", lambda *work, **options: mapped(*work, **options | {"parallel": False})
    )


def test_the_files_are_what_both_readers_read(folder, sample, in_this_process):
    from torch_geometric.datasets import ZINC

    assert build_zinc.main([str(folder)]) == 0
    count = len(sample["smiles"])
    source = load_zinc("ZINC", folder.parent, folder.parent / "cache")
    assert {part: len(numbers) for part, numbers in source.split.items()} == {"train": count - 10, "val": 6, "test": 4}
    assert source.variant == (
        f"{count - 10:,} of 220,011 training molecules, 6 of 24,445 validation molecules, "
        "4 of 5,000 test molecules, rebuilt from SMILES"
    )
    code = {name: number for number, name in enumerate(sample["types"].tolist())}
    types, bonds, label = build_zinc.build_molecule(sample["smiles"][3])
    first = source.graphs.select([count - 4])  # the first that tests
    assert first.x[:, 0].tolist() == [code[name] for name in types]
    assert np.array_equal(first.edge_index.numpy(), np.stack(np.nonzero(bonds)))
    assert first.edge_attr[:, 0].tolist() == bonds[np.nonzero(bonds)].tolist()
    assert first.y.item() == pytest.approx(label, abs=1e-6)
    theirs = ZINC(str(folder), split="test")[0]
    assert torch.equal(theirs.x.float(), first.x) and torch.equal(theirs.edge_index, first.edge_index)
    assert torch.equal(theirs.edge_attr.float(), first.edge_attr[:, 0]) and torch.equal(theirs.y, first.y)
    subset = load_zinc("ZINC12k", folder.parent, folder.parent / "cache")
    assert "training molecules drawn with seed 0, not the benchmark's" in subset.variant
    own = [int(subset.graphs.sizes[number]) for number in subset.split["val"]]
    assert own == [np.diff(sample["node_ptr"])[count - 6 + position] for position in (5, 0, 2)]


def test_the_benchmarks_own_graphs_replace_those_built(folder, sample, in_this_process):
    chosen = [len(sample["smiles"]) - 6 + position for position in (5, 0, 2)]
    ptr = {name: [np.arange(*sample[name][[k, k + 1]]) for k in chosen] for name in ("node_ptr", "edge_ptr")}
    nodes, edges = np.concatenate(ptr["node_ptr"]), np.concatenate(ptr["edge_ptr"])
    np.savez(
        folder / "zinc12k_official_val.npz", x=sample["x"][nodes][::-1], edge_index=sample["edge_index"][:, edges],
        edge_attr=sample["edge_attr"][edges], y=np.array([7.0, 8.0, 9.0]),
        **{name: np.cumsum([0, *map(len, parts)]) for name, parts in ptr.items()},
    )  # fmt: skip
    assert build_zinc.main([str(folder)]) == 0
    source = load_zinc("ZINC12k", folder.parent, folder.parent / "cache")
    assert source.graphs.y[source.split["val"]].tolist() == [7, 8, 9]
    assert source.variant.endswith("; 3 validation graphs are the benchmark's own")
    assert build_zinc.main([str(folder), "--all-from-smiles"]) == 0
    source = load_zinc("ZINC12k", folder.parent, folder.parent / "cache")
    assert not set(source.graphs.y[source.split["val"]].tolist()) & {7, 8, 9} and "own" not in source.variant


def test_an_interrupted_build_leaves_no_part_of_the_one_before(folder, in_this_process, monkeypatch):
    assert build_zinc.main([str(folder)]) == 0

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_zinc, "write_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_zinc.main([str(folder), "--seed=1"])
    assert [file.name for file in (folder / "raw").iterdir()] == ["rebuilt.json"]


def test_the_files_hold_data_only(folder, in_this_process):
    build_zinc.main([str(folder)])
    with (folder / "raw" / "train.pickle").open("rb") as file:
        molecules = load_plain(file)
    assert set(molecules[0]) == {"num_atom", "atom_type", "bond_type", "logP_SA_cycle_normalized"}
    assert torch.equal(molecules[0]["bond_type"], molecules[0]["bond_type"].T)


def test_what_cannot_be_built_is_said(folder, capsys, in_this_process):
    raw = folder / "raw"
    raw.mkdir()
    (raw / "train.pickle").write_bytes(pickle.dumps([]))
    assert build_zinc.main([str(folder)]) == 1
    assert "did not write" in capsys.readouterr().err and pickle.loads((raw / "train.pickle").read_bytes()) == []
    (raw / "train.pickle").unlink()
    (folder / "zinc_atom_types.json").write_text(json.dumps({"types": ["C", "O"]}))
    assert build_zinc.main([str(folder)]) == 1
    assert "N" in capsys.readouterr().err
    (folder / "zinc_splits.npz").unlink()
    assert build_zinc.main([str(folder)]) == 1
    assert "lacks zinc_splits.npz" in capsys.readouterr().err
    (raw / "rebuilt.json").write_text("{")
    for part in ("train", "val", "test"):
        for kind in ("pickle", "index"):
            (raw / f"{part}.{kind}").touch()
    with pytest.raises(UserError, match=r"rebuilt\.json is damaged"):
        load_zinc("ZINC", folder.parent, folder.parent / "cache")


def test_the_variant_never_meets_the_official_test_molecules(config, tmp_path):
    check_unseen("ZINC", "ZINC12k")
    check_unseen("ZINC-variant", "ZINC-variant")
    for name in ("ZINC", "ZINC12k"):
        with pytest.raises(UserError, match="contains official test molecules"):
            check_unseen("ZINC-variant", name)
    (tmp_path / "run").mkdir()
    write_result(tmp_path / "run", make_record(dataset={"name": "ZINC-variant", "sha256": ""}))
    with pytest.raises(UserError, match="contains official test molecules"):
        assemble(config("experiment=zinc"), {}, tmp_path / "run")
