"""The examples of docs/how-to/integrations.md run, and the interfaces they show behave as their hosts expect."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import timm
import torch

import et.integrations.timm
from et.core import EdgeTopology, descend
from et.integrations.pyg import EnergyConv

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "integrations.md"
EXAMPLES = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text(), re.S | re.M)
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "num_memories": 64}


@pytest.mark.parametrize("title, code", EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_examples_run(title, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), {})


def test_every_interface_has_an_example():
    assert [title for title, _ in EXAMPLES] == [
        "PyTorch",
        "timm",
        "PyTorch Geometric",
        "torch.export and ONNX",
        "Graph models",
    ]


def test_the_former_name_of_the_timm_models_still_works():
    with pytest.warns(DeprecationWarning, match=r"is now et\.integrations\.timm"):
        former = importlib.import_module("et.inpainting.timm_models")
    assert former is importlib.import_module("et.integrations.timm")


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


def test_timm_model_trains_alike_with_checkpointing():
    model = timm.create_model("et_base_patch16_224", num_classes=5, depth=3, **SMALL)
    images, gradients = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def small_timm_model(**arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("et_base_patch16_224", **({"num_classes": 5, "depth": 3} | SMALL | arguments)).eval()


def test_timm_weights_of_one_image_size_load_into_another(tmp_path):
    """Patch and position embeddings are resized as timm resizes a ViT's; everything else is taken as it is."""
    model, path = small_timm_model(), str(tmp_path / "weights.pth")
    torch.save(model.state_dict(), path)
    other = small_timm_model(img_size=48, patch_size=12, pretrained=True, pretrained_cfg_overlay={"file": path})
    bigger = small_timm_model(img_size=64, pretrained=True, pretrained_cfg_overlay={"file": path})
    expected = timm.layers.resample_abs_pos_embed(model.pos_embed, [8, 8])
    torch.testing.assert_close(bigger.pos_embed, expected)
    assert bigger(torch.randn(2, 3, 64, 64)).shape == other(torch.randn(2, 3, 48, 48)).shape == (2, 5)
    for name, weight in model.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(bigger.state_dict()[name], weight), name
    model.set_input_size(64)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), bigger(images))
    for wrapped in ({"model": model.state_dict()}, {"state_dict": model.state_dict()}):
        filtered = et.integrations.timm.checkpoint_filter_fn(wrapped, small_timm_model())
        assert filtered["pos_embed"].shape == (1, 17, 32)
    with pytest.raises(ValueError, match="no square grid"):
        et.integrations.timm.checkpoint_filter_fn({"pos_embed": torch.zeros(1, 9, 32)}, model)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64))
def test_timm_reset_classifier_keeps_the_dtype(dtype):
    model, images = small_timm_model().to(dtype), torch.randn(2, 3, 32, 32).to(dtype)
    model.reset_classifier(7)
    assert model(images).shape == (2, 7) and model(images).dtype == dtype
    model.reset_classifier(0)
    model.reset_classifier(4)
    assert model(images).shape == (2, 4) and model(images).dtype == dtype


def test_timm_pools_what_it_is_told_to():
    model, images = small_timm_model(num_classes=0), torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(images)
    cls, patches = tokens[:, 0], tokens[:, 1:]
    expected = {"token": cls, "avg": patches.mean(1), "max": patches.amax(1), "": tokens}
    expected["avgmax"] = 0.5 * (expected["avg"] + expected["max"])
    for pool, pooled in expected.items():
        model.reset_classifier(0, pool)
        torch.testing.assert_close(model(images), pooled)
        torch.testing.assert_close(small_timm_model(num_classes=0, global_pool=pool)(images), pooled)
    for refused in (lambda: model.reset_classifier(5, "map"), lambda: small_timm_model(global_pool="foo")):
        with pytest.raises(ValueError, match="global_pool must be one of 'token', 'avg', 'max', 'avgmax', ''"):
            refused()
    assert model.global_pool == "avgmax"  # what was refused changes nothing


@pytest.mark.parametrize("out_indices, steps", [(None, [1, 2, 3]), ((0, -1), [1, 3]), (1, [3]), ((1,), [2])])
def test_timm_features_are_the_states_after_chosen_steps(out_indices, steps):
    model, images = small_timm_model(), torch.randn(2, 3, 32, 32)
    arguments = {} if out_indices is None else {"out_indices": out_indices}
    features = small_timm_model(features_only=True, **arguments)
    features.model.load_state_dict(model.state_dict(), strict=False)
    found = features(images)
    assert features.feature_info.channels() == [32] * len(steps)
    assert features.feature_info.reduction() == [8] * len(steps)
    for feature, count in zip(found, steps, strict=True):
        state = descend(model.block, model.embed(images), count, model.step_size).x
        torch.testing.assert_close(feature, state[:, 1:].mT.unflatten(-1, (4, 4)))
    assert features.model.depth == max(steps)  # steps after the last chosen one are not taken


def test_timm_forward_intermediates():
    model, images = small_timm_model(), torch.randn(2, 3, 32, 32)
    final, (first, last) = model.forward_intermediates(images, indices=[0, 2], norm=True, output_fmt="NLC")
    torch.testing.assert_close(final, model.forward_features(images))
    torch.testing.assert_close(last, final[:, 1:])
    assert first.shape == (2, 16, 32)
    patches, cls = model.forward_intermediates(
        images, indices=1, return_prefix_tokens=True, norm=True, intermediates_only=True
    )[0]
    assert patches.shape == (2, 32, 4, 4) and torch.equal(cls, final[:, :1])
    stopped, _ = model.forward_intermediates(images, indices=[1], stop_early=True)
    torch.testing.assert_close(stopped, small_timm_model(depth=2).forward_features(images))
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(images, output_fmt="NHWC")


def test_timm_optimizer_groups():
    from timm.optim import create_optimizer_v2

    groups = create_optimizer_v2(small_timm_model(), opt="adamw", weight_decay=0.1, layer_decay=0.5).param_groups
    assert len({group["lr_scale"] for group in groups}) > 1
    assert sum(len(group["params"]) for group in groups) == len(list(small_timm_model().parameters()))


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
