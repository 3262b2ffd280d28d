"""The examples of docs/integrations.md run, and the interfaces they show behave as their hosts expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch

import et.inpainting.timm_models  # noqa: F401  (registers the model)
from et.core import EdgeTopology
from et.graphs.conv import EnergyConv

PAGE = Path(__file__).parents[1] / "docs" / "integrations.md"
EXAMPLES = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text(), re.S | re.M)
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "num_memories": 64}


@pytest.mark.parametrize("title, code", EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_examples_run(title, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), {})


def test_every_interface_has_an_example():
    assert [title for title, _ in EXAMPLES] == ["timm", "PyTorch Geometric", "torch.export and ONNX", "Graph models"]


def test_timm_model_has_the_base_sizes_and_timm_interface():
    assert timm.is_model("et_base_patch16_224") and "et_base_patch16_224" in timm.list_models("et_*")
    with torch.device("meta"):
        base = timm.create_model("et_base_patch16_224")
    of_block = sum(p.numel() for p in base.block.parameters())
    assert of_block == 3_538_944 + 1 + 768 and base.num_features == 768 and base.depth == 12

    model = timm.create_model("et_base_patch16_224", num_classes=5, depth=2, **SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 5) and model.get_classifier().out_features == 5
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (2, 32)
    model.reset_classifier(0, "avg")
    assert model(images).shape == (2, 32)
    with pytest.raises(RuntimeError, match=r"[Pp]retrained"):
        timm.create_model("et_base_patch16_224", pretrained=True)


def test_timm_model_trains_alike_with_checkpointing():
    model = timm.create_model("et_base_patch16_224", num_classes=5, depth=3, **SMALL)
    images, gradients = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_energy_conv_descends_and_takes_either_form_of_edges():
    torch.manual_seed(0)
    conv = EnergyConv(6, heads=2, head_dim=3, memories=8, steps=5, step_size=0.01, attention_init_std=0.3)
    x, edge_index = torch.randn(4, 6), torch.tensor([[0, 1, 2, 3, 1], [1, 0, 1, 2, 3]])
    topology = EdgeTopology(edge_index, 4)
    after = conv(x, edge_index)
    torch.testing.assert_close(after, conv(x, topology))
    energy_before, energy_after = (conv.block.energy(conv.block.norm(nodes), topology) for nodes in (x, after))
    assert energy_after < energy_before
    after.sum().backward()
    assert all(p.grad is not None for p in conv.parameters())
    with pytest.raises(ValueError, match="names nodes"):
        conv(x[:2], edge_index)
