"""Pickled graph data are read, and what else is in such a file is not executed."""

import io
import os
import pickle

import numpy as np
import pytest
import torch
from torch_geometric.datasets import zinc
from torch_geometric.io import fs

from et.utils.errors import UserError
from et.utils.plain_pickle import load_plain, only_data


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_data_come_through():
    molecule = {"atom_type": torch.arange(5), "bond_type": torch.eye(3), "num_atom": 5, "name": np.arange(3.0)}
    (found,) = load_plain(io.BytesIO(pickle.dumps([molecule])))
    assert found["num_atom"] == 5 and torch.equal(found["bond_type"], torch.eye(3))
    assert np.array_equal(found["name"], np.arange(3.0))


def test_a_hostile_pickle_is_not_executed(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(UserError, match=r"posix\.system, which is not data"):
        load_plain(io.BytesIO(pickle.dumps([Hostile(marker)])))
    nested = io.BytesIO()
    torch.save(Hostile(marker), nested, _use_new_zipfile_serialization=False)

    class Storage:
        def __reduce__(self):
            return (torch.storage._load_from_bytes, (nested.getvalue(),))

    with pytest.raises(pickle.UnpicklingError):
        load_plain(io.BytesIO(pickle.dumps(Storage())))
    assert not marker.exists()


def test_torch_geometric_reads_data_only_in_the_context(tmp_path):
    marker, former = tmp_path / "ran", (fs.torch_load, zinc.pickle)
    torch.save({"x": Hostile(marker)}, tmp_path / "hostile.pt")
    torch.save({"x": torch.ones(2)}, tmp_path / "plain.pt")
    with only_data():
        assert torch.equal(fs.torch_load(str(tmp_path / "plain.pt"))["x"], torch.ones(2))
        with pytest.raises(pickle.UnpicklingError):
            fs.torch_load(str(tmp_path / "hostile.pt"))
        with pytest.raises(UserError):
            zinc.pickle.load(io.BytesIO(pickle.dumps(Hostile(marker))))
    assert (fs.torch_load, zinc.pickle) == former
    assert not marker.exists()
