"""Build ZINC, full and 12k, from SMILES in the form that torch_geometric's ZINC reads.

    pip install -e ".[zinc]"
    python scripts/build_zinc.py data/zinc    # a folder with the files below; writes data/zinc/raw

Reads (docs/how-to/zinc.md says where they come from):

    zinc_smiles.txt.xz       one molecule a line
    zinc_splits.npz          valid, test: line numbers of the official parts; all other lines are training molecules.
                             subset_valid, subset_test: positions within valid and test that make the 12k subset's
    zinc_atom_types.json     types: the names of the 28 atom types, in the benchmark's order
    zinc12k_official_val.npz the benchmark's own validation graphs of the 12k subset: x, edge_index, edge_attr, y,
                             node_ptr, edge_ptr. They replace the graphs built from SMILES, unless --all-from-smiles

Writes raw/{train,val,test}.pickle and .index, as the benchmark has them, and raw/rebuilt.json, which says what differs
from the benchmark. The pickles hold tensors and containers only.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from et.graphs.published import PUBLISHED_PARTS
from et.graphs.sources import REBUILT, SPLITS, files_of
from et.utils.errors import UserError
from et.utils.files import replacing, write_atomically
from et.utils.parallel import parallel_map

Molecule = tuple[list[str], np.ndarray, float]  # atom types (n,), bond orders (n, n), label
SUBSET_TRAIN = 10_000
# The label is a linear function of the three standardised properties: weights of logP, SA and cycle, and a constant.
LOGP, SA, CYCLE, CONSTANT = 0.6976318, -1.1981676, -3.4751391, 2.11183
AROMATIC = 1.5  # an aromatic bond's order in RDKit


# --------------------------------------------------------------------------------------------------------- a molecule


def build_molecule(smiles: str) -> Molecule:
    """Atom types, bond orders and label of one molecule.

    Returns:
        Names of the atom types, (n,); bond orders, (n, n) uint8: 0 none, 1 single, 2 double, 3 triple; the label.
    """
    from rdkit import Chem
    from rdkit.Chem.Crippen import MolLogP

    written = Chem.MolFromSmiles(smiles)
    molecule, types = in_benchmark_order(written, smiles)
    bonds = kekule_bonds(molecule)
    cycle = max(0, largest_cycle(bonds) - 6)
    label = LOGP * MolLogP(written) + SA * _sascorer().calculateScore(written) + CYCLE * cycle + CONSTANT
    return types, bonds, label


def atom_types(molecule: Any) -> list[str]:
    """Symbol, explicit hydrogens (none on a neutral aromatic nitrogen) and sign of the charge, such as ``N H1 +``."""
    found = []
    for index in range(molecule.GetNumAtoms()):  # iterating over GetAtoms() takes three times as long
        atom = molecule.GetAtomWithIdx(index)
        symbol, charge, hydrogens = atom.GetSymbol(), atom.GetFormalCharge(), atom.GetNumExplicitHs()
        if hydrogens and not (charge == 0 and symbol == "N" and atom.GetIsAromatic()):
            symbol += f" H{hydrogens}"
        found.append(symbol if charge == 0 else f"{symbol} {'+' if charge > 0 else '-'}")
    return found


def in_benchmark_order(written: Any, smiles: str) -> tuple[Any, list[str]]:
    """The molecule with its atoms in the benchmark's order, and their types.

    The benchmark's order is that of the canonical SMILES in Kekule form. A SMILES that RDKit would write otherwise
    today is one whose canonical order has changed between versions: its own order is then nearer to the benchmark's.

    Args:
        written: RDKit's molecule of ``smiles``.
        smiles: A canonical SMILES.
    """
    from rdkit import Chem

    types = atom_types(written)
    if Chem.MolToSmiles(written) != smiles:
        return written, types
    bonds, kekule = kekule_bonds(written), Chem.RWMol(written)
    Chem.Kekulize(kekule, clearAromaticFlags=True)
    aromatic = np.triu(Chem.GetAdjacencyMatrix(written, useBO=True) == AROMATIC)
    for i, j in np.argwhere(aromatic).tolist():
        order = Chem.BondType.DOUBLE if bonds[i, j] == 2 else Chem.BondType.SINGLE
        kekule.GetBondBetweenAtoms(i, j).SetBondType(order)
    reread = Chem.MolFromSmiles(Chem.MolToSmiles(kekule))
    types_reread = None if reread is None else atom_types(reread)
    if types_reread is None or sorted(types_reread) != sorted(types):
        return written, types
    return reread, types_reread


def kekule_bonds(molecule: Any) -> np.ndarray:
    """Bond orders of an RDKit molecule in the benchmark's Kekule form, (n, n) uint8.

    Which aromatic atoms have a double bond is RDKit's choice. Which neighbour it leads to is not, since that choice
    differs between versions of RDKit: the first such atom is joined to its first neighbour for which a form exists.
    """
    from rdkit import Chem

    orders = Chem.GetAdjacencyMatrix(molecule, useBO=True)
    aromatic = orders == AROMATIC
    if aromatic.any():
        kekule = Chem.Mol(molecule)
        Chem.Kekulize(kekule)
        double = (aromatic & (Chem.GetAdjacencyMatrix(kekule, useBO=True, force=True) == 2)).any(1)
        between = aromatic & double & double[:, None]
        orders[aromatic] = 1
        for i, j in first_matching(_neighbours(between)).items():
            orders[i, j] = 2
    return orders.astype(np.uint8)


def _neighbours(joined: np.ndarray) -> dict[int, list[int]]:
    """The neighbours, in order, of each node that has any. ``joined``, (n, n), is nonzero where nodes are joined."""
    found: dict[int, list[int]] = {}
    for i, j in zip(*(side.tolist() for side in np.nonzero(joined)), strict=True):
        found.setdefault(i, []).append(j)
    return found


def first_matching(neighbours: dict[int, list[int]]) -> dict[int, int]:
    """The first perfect matching of a graph, as the partner of each node; neighbours are tried in the order given.

    Raises:
        ValueError: there is none.
    """
    order, partner = sorted(neighbours), {}

    def match(position: int) -> bool:
        while position < len(order) and order[position] in partner:
            position += 1
        if position == len(order):
            return True
        node = order[position]
        for other in neighbours[node]:
            if other not in partner:
                partner[node], partner[other] = other, node
                if match(position + 1):
                    return True
                del partner[node], partner[other]
        return False

    if not match(0):
        raise ValueError("the graph has no perfect matching")
    return partner


def largest_cycle(bonds: np.ndarray) -> int:
    """Size of the largest ring of the cycle basis that networkx 2 finds; 0 without rings.

    A cycle basis is not unique. This one (Paton 1969) starts at the first atom and takes neighbours in order; networkx
    3 starts at the last atom, and its largest ring can be another.

    Args:
        bonds: (n, n), nonzero where atoms are joined.
    """
    neighbours = _neighbours(bonds)
    largest, left = 0, set(range(len(bonds)))
    while left:
        root = min(left)
        stack, before, used = [root], {root: root}, {root: set()}
        while stack:
            atom = stack.pop()
            for other in neighbours.get(atom, ()):
                if other not in used:
                    before[other], used[other] = atom, {atom}
                    stack.append(other)
                elif other not in used[atom]:
                    size, step = 3, before[atom]  # other, atom and the atom where the two paths meet
                    while step not in used[other]:
                        size, step = size + 1, before[step]
                    used[other].add(atom)
                    largest = max(largest, size)
        left -= before.keys()
    return largest


def _sascorer() -> Any:
    """RDKit's contributed scorer of synthetic accessibility (Ertl and Schuffenhauer 2009)."""
    from rdkit import RDConfig

    folder = os.path.join(RDConfig.RDContribDir, "SA_Score")
    if folder not in sys.path:
        sys.path.append(folder)
    import sascorer

    return sascorer


# --------------------------------------------------------------------------------------------------------- the files


def official_molecules(file: Path, types: Sequence[str]) -> list[Molecule]:
    """The benchmark's own validation graphs of the 12k subset."""
    with np.load(file, allow_pickle=False) as arrays:
        x, y, edges, orders = (arrays[key] for key in ("x", "y", "edge_index", "edge_attr"))
        node_ptr, edge_ptr = arrays["node_ptr"], arrays["edge_ptr"]
    found = []
    for number in range(len(y)):
        atoms = [types[code] for code in x[node_ptr[number] : node_ptr[number + 1]]]
        own = slice(edge_ptr[number], edge_ptr[number + 1])
        bonds = np.zeros((len(atoms), len(atoms)), np.uint8)
        bonds[tuple(edges[:, own].astype(int))] = orders[own]
        found.append((atoms, bonds, float(y[number])))
    return found


class SharedStorages(pickle.Pickler):
    """Pickles tensors that are views of a few large ones; each of these is written once.

    The pickle needs nothing but what any pickled tensor does.
    """

    def __init__(self, file: Any, *whole: Tensor):
        super().__init__(file, protocol=4)
        self.storages = {tensor.untyped_storage().data_ptr(): tensor._typed_storage() for tensor in whole}
        self.no_hooks: OrderedDict = OrderedDict()

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        storage = self.storages[value.untyped_storage().data_ptr()]
        place = storage, value.storage_offset(), tuple(value.shape), value.stride(), False, self.no_hooks
        return torch._utils._rebuild_tensor_v2, place


def write_part(path: Path, molecules: Sequence[Molecule], types: Sequence[str]) -> None:
    """Write one part as a pickled list of dictionaries, each with the benchmark's keys.

    Raises:
        UserError: an atom is of none of the ``types``.
    """
    code = {name: number for number, name in enumerate(types)}
    unknown = {name for atoms, _, _ in molecules for name in atoms} - code.keys()
    if unknown:
        raise UserError(f"atoms of type {', '.join(sorted(unknown))} are none of the benchmark's {len(types)} types")
    atom = torch.tensor([code[name] for atoms, _, _ in molecules for name in atoms], dtype=torch.uint8)
    bond = torch.from_numpy(np.concatenate([bonds.ravel() for _, bonds, _ in molecules]))
    label = torch.tensor([label for *_, label in molecules], dtype=torch.float32)
    sizes = [len(atoms) for atoms, _, _ in molecules]
    atoms, bonds = atom.split(sizes), bond.split([size * size for size in sizes])
    part = [
        {"num_atom": n, "atom_type": atoms[i], "bond_type": bonds[i].view(n, n),
         "logP_SA_cycle_normalized": label[i : i + 1]}
        for i, n in enumerate(sizes)
    ]  # fmt: skip
    with replacing(path) as fresh, fresh.open("wb") as file:
        SharedStorages(file, atom, bond, label).dump(part)


def build(folder: Path, seed: int, all_from_smiles: bool) -> None:
    """Build all parts from the files in ``folder``.

    Args:
        folder: The data root's ``zinc`` folder.
        seed: Seed of the training molecules of the 12k subset.
        all_from_smiles: Do not use the benchmark's own validation graphs.

    Raises:
        UserError: a file is missing, or ``folder`` has the benchmark's own files already.
    """
    raw, official = folder / "raw", folder / "zinc12k_official_val.npz"
    old = [file for file in files_of("zinc", "ZINC", folder.parent) if file.exists()]
    if old and not (raw / REBUILT).exists():
        raise UserError(f"{raw} holds files that this script did not write: move them away to build others")
    needed = [folder / name for name in ("zinc_smiles.txt.xz", "zinc_splits.npz", "zinc_atom_types.json")]
    absent = [file.name for file in needed if not file.exists()]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)}: docs/how-to/zinc.md says where they come from")
    with lzma.open(needed[0], "rt") as file:
        smiles = file.read().split()
    with np.load(needed[1], allow_pickle=False) as arrays:
        parts = {"val": arrays["valid"], "test": arrays["test"]}
        chosen = {"val": arrays["subset_valid"], "test": arrays["subset_test"]}
    types = json.loads(needed[2].read_text())["types"]
    parts["train"] = np.setdiff1d(np.arange(len(smiles)), np.concatenate([parts["val"], parts["test"]]))
    rng, total = np.random.default_rng(seed), len(parts["train"])
    chosen["train"] = np.sort(rng.choice(total, min(SUBSET_TRAIN, total), replace=False))
    molecules = parallel_map(build_molecule, smiles, what="building molecules", parallel=True, bar=True, together=256)
    raw.mkdir(parents=True, exist_ok=True)
    used = official.exists() and not all_from_smiles
    for file in old:  # an interrupted build must not leave some of them under the new description
        file.unlink()
    write_atomically(raw / REBUILT, json.dumps(describe(parts, chosen, seed, used), indent=1) + "\n")
    for part, lines in parts.items():
        found = [molecules[line] for line in lines]
        if part == "val" and used:
            for position, molecule in zip(chosen["val"], official_molecules(official, types), strict=True):
                found[position] = molecule
        write_part(raw / f"{part}.pickle", found, types)
        write_atomically(raw / f"{part}.index", ",".join(map(str, chosen[part])) + "\n")


def describe(parts: dict[str, np.ndarray], chosen: dict[str, np.ndarray], seed: int, official: bool) -> dict[str, str]:
    """What differs from the benchmark, for each data set's records."""
    own = f"; {len(chosen['val']):,} validation graphs are the benchmark's own" if official else ""
    counts = [
        f"{len(parts[part]):,} of {size:,} {name} molecules"
        for part, size, name in zip(SPLITS, PUBLISHED_PARTS["ZINC"], ("training", "validation", "test"), strict=True)
        if len(parts[part]) != size
    ]
    full = ", ".join([*counts, "rebuilt from SMILES"]) + own
    sample = (
        f"rebuilt from SMILES; {len(chosen['train']):,} training molecules drawn with seed {seed}, not the benchmark's"
    )
    return {"ZINC": full, "ZINC12k": sample + own}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build ZINC from SMILES."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the data root's zinc folder, with the files to build from")
    parser.add_argument("--seed", type=int, default=0, help="of the 12k subset's training molecules")
    parser.add_argument("--all-from-smiles", action="store_true", help="build the official validation graphs too")
    options = parser.parse_args(arguments)
    try:
        build(options.folder, options.seed, options.all_from_smiles)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
