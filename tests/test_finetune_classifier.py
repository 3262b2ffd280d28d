"""scripts/finetune_classifier.py on photographs of one colour, which a tiny network learns to tell apart."""

import importlib.util
import json

import numpy as np
import timm
import torch
from PIL import Image

import et.integrations.timm  # noqa: F401  (registers the model)
from tests.configs import ROOT


def test_classes_are_learnt_and_the_weights_load_again(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("finetune_classifier", ROOT / "scripts" / "finetune_classifier.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for label, colour in enumerate((30, 220)):
            (tmp_path / part / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = (colour + rng.integers(-20, 20, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / f"class{label}" / f"{number}.png")
    small = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "num_memories": 64}
    create, asked = timm.create_model, []

    def create_small(name, pretrained, **options):
        asked.append(pretrained)
        return create(name, pretrained=False, depth=2, **small, **options)

    monkeypatch.setattr(script.timm, "create_model", create_small)
    options = script.parse(
        [
            str(tmp_path / "out"),
            "--data",
            str(tmp_path),
            "--train",
            "12",
            "--epochs",
            "10",
            "--batch-size",
            "4",
            "--lr",
            "1e-2",
            "--image-size",
            "32",
        ]
    )
    found = script.run(options)
    assert asked == [True] and found == json.loads((tmp_path / "out" / "finetuned.json").read_text())
    assert found["photographs"] == {"train": 12, "val": 8} and found["classes"] == 2 and len(found["losses"]) == 30
    assert found["accuracy"] == 100 and found["losses"][-1] < found["losses"][0]
    assert found["image_size"] == [32, 32]
    options.output, options.epochs = tmp_path / "again", 1
    assert script.run(options)["losses"][0] == found["losses"][0]  # the same crops of the same photographs
    again = create(
        "et_base_patch16_224", num_classes=2, depth=2, global_pool="avg", img_size=32, **small,
        checkpoint_path=str(tmp_path / "out" / "weights.pt"),
    ).eval()  # fmt: skip
    parts = script.datasets(tmp_path, {"input_size": (3, 32, 32)}, {"train": 12, "val": 8}, 0)
    data = parts["val"]
    assert script.accuracy(again, data, 4, bf16=False) == 1
    torch.manual_seed(options.seed)
    fresh = create_small("et_base_patch16_224", True, num_classes=2, global_pool="avg", img_size=32)
    assert found["before"] == 100 * script.accuracy(fresh, data, 4, bf16=script.has_fast_bf16("cpu"))
    assert again.head.weight.dtype == torch.float32
    with torch.no_grad():
        fresh.head.weight.zero_()
        fresh.head.bias.copy_(torch.tensor([0.0, 1.0]))  # puts every photograph into the second class
    assert script.accuracy(fresh, data, 4, bf16=False) == 0.5
    script.fit_head(
        fresh, script.datasets(tmp_path, {"input_size": (3, 32, 32)}, {"train": 12, "val": 8}, 0)["train"], 4, False
    )
    assert script.accuracy(fresh, data, 4, bf16=False) == 1


def test_the_numbers_of_the_page_are_those_on_record():
    page = (ROOT / "docs" / "explanation" / "features.md").read_text()
    for run in json.loads((ROOT / "docs" / "finetuned.json").read_text())["runs"]:
        assert run["git_commit"] and "+" not in run["git_commit"]
        assert f"{run['before']:.1f} | {run['accuracy']:.1f} ± {run['interval']:.1f}" in page, run["command"]
        first, last = (sum(losses) / 18 for losses in (run["losses"][:18], run["losses"][-18:]))
        assert f"{run['epochs']} | {first:.2f} | {last:.2f} |" in page, run["command"]
