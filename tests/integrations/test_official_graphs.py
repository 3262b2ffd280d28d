"""The authors' saved graph models: numbers of their code (fixtures/released_padded.npz) from a file in their form."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from et.graphs.batch import pack
from et.graphs.model import GraphEnergyTransformer
from et.integrations.official_graphs import BLOCK, NAMES, OPTIONAL, load_official_graph_model
from et.utils.errors import UserError
from tests.configs import ROOT
from tests.integrations.flax_files import write_flax


def as_flax(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The state of GraphEnergyTransformer under the names and in the shapes of the authors' Flax model."""
    found = {}
    for key, value in state.items():
        number = next((part for part in key.split(".") if part.isdecimal()), "")
        pattern = key.replace(f".{number}", ".N", 1) if number else key
        name = {**NAMES, **BLOCK, **OPTIONAL}[pattern].replace("N", number)
        if key == "kernel":
            value = value.permute(1, 2, 0)[:, :, None]  # (3, 3, 1, H)
        elif key.endswith(("weight", "memories")):
            value = value.T
        elif key.endswith("gamma") or key == "cls":
            value = value.reshape(1, -1) if key == "cls" else value.reshape(1)
        found[name] = np.ascontiguousarray(value.numpy())
    return found


@pytest.fixture
def saved(golden, tmp_path):
    """A saved model, and the padded batch and numbers of the authors' code that belong to it."""
    arrays = golden("released_padded")
    state = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
    return write_flax(tmp_path / "checkpoint_7", as_flax(state), step=np.int64(7), opt_state={}), arrays


def test_a_saved_model_computes_what_the_authors_code_computes(saved):
    path, arrays = saved
    arguments, state = load_official_graph_model(path)
    model = GraphEnergyTransformer(
        **arguments, edge_features=4, steps=1, step_size=0.1, head_mix=True, adjacency_bias=True, layout="padded",
        sink_padding=True,
    ).double().eval()  # fmt: skip
    model.load_state_dict(state)
    keys = ("sizes", "edge_counts", "x", "edge_index", "edge_attr")
    batch = replace(pack(*(arrays[key] for key in keys), y=torch.zeros(4, dtype=torch.int64)), pe=arrays["pe"])
    assert torch.allclose(model.initial(batch)[2], arrays["ahat"], rtol=0, atol=1e-10)
    assert torch.allclose(model(batch), arrays["logits"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("experiment", ["tu_mutag", "gnnbench_mnist"])
def test_a_converted_model_loads_as_a_run(tmp_path, experiment):
    from hydra.utils import instantiate

    from et.runs.loading import load_run
    from tests.configs import compose_config

    spec = importlib.util.spec_from_file_location("convert", ROOT / "scripts" / "convert_official_checkpoint.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    network = instantiate(compose_config(f"experiment={experiment}", "fidelity=released").model)
    source = write_flax(tmp_path / "checkpoint_9", as_flax({k: v.detach() for k, v in network.state_dict().items()}))
    script.convert(source, tmp_path / "official.ckpt", experiment)
    cfg, loaded = load_run(tmp_path / "official.ckpt")
    assert cfg.fidelity == cfg.protocol == "released"
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    other = {"tu_mutag": "tu_enzymes", "gnnbench_mnist": "tolokers_1pct"}[experiment]
    with pytest.raises(UserError, match=r"nodes of 7 features|an experiment of ET on graphs"):
        script.convert(source, tmp_path / "other.ckpt", other)


def test_other_models_are_refused(saved, tmp_path):
    params = as_flax(load_official_graph_model(saved[0])[1])
    with pytest.raises(UserError, match="has encode_block_0/attn/Bk in addition"):
        load_official_graph_model(write_flax(tmp_path / "a", params | {"encode_block_0/attn/Bk": np.zeros(3)}))
    with pytest.raises(UserError, match="lacks encode_norm_1/gamma"):
        load_official_graph_model(
            write_flax(tmp_path / "b", {k: v for k, v in params.items() if k != "encode_norm_1/gamma"})
        )
    with pytest.raises(UserError, match="convolution of"):
        wide = {"conv/kernel": np.zeros((5, 5, 1, 3))}
        load_official_graph_model(write_flax(tmp_path / "c", params | wide))
    (tmp_path / "d").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match="is a pickle, which may execute code"):
        load_official_graph_model(tmp_path / "d")
