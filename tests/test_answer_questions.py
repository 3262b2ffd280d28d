"""scripts/answer_questions.py on runs of a second each: what it writes, and that its numbers mean what they say."""

import importlib.util
import json
import subprocess
from typing import Any

import pytest
import torch

from et.inpainting.analysis import converge
from et.inpainting.model import InpaintingET
from et.inpainting.patches import patchify
from et.inpainting.scores import masked_mse
from et.training.run import train
from et.utils.errors import UserError
from tests.configs import ROOT, TINY


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("answer_questions", ROOT / "scripts" / "answer_questions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def network_and_batch():
    torch.manual_seed(0)
    network = InpaintingET(16, 4, dim=16, num_heads=2, head_dim=4, num_memories=24, steps=3, step_size=0.5)
    return network, {"image": torch.randn(3, 3, 16, 16), "masked": torch.rand(3, 16) < 0.5}


def test_error_after_the_trained_steps_is_the_networks_own(script, network_and_batch):
    network, batch = network_and_batch
    with torch.no_grad():
        own = masked_mse(network(batch["image"], batch["masked"]), patchify(batch["image"], 4), batch["masked"]).mean()
    assert script.error_after(network, batch, 3, 0.5) == pytest.approx(own.item())
    finer = script.finer_steps(network, batch)
    assert all(row["steps"] * row["step_size"] == pytest.approx(1.5) for row in finer)


def test_no_displacement_ends_where_the_plain_descent_ends(script, network_and_batch):
    still, moved = script.other_starts(*network_and_batch, 12, (0.0, 1.0))
    assert still["apart_at_start"] == still["apart_at_T"] == still["apart_at_end"] == 0
    assert moved["apart_at_start"] > 0.1


def test_images_that_arrived_are_slow(script, network_and_batch):
    for row in script.rest(*network_and_batch, most=50, tolerances=(10.0, 1e-9)):
        assert row["arrived"] in (0, 1)
        assert row["arrived"] == 0 or row["largest_speed_after"] <= row["tolerance"]


def test_dropping_the_second_term_is_undone_afterwards(script, network_and_batch):
    network, batch = network_and_batch
    found = script.without_second_term(network, batch, 4)
    assert network.block.attention.terms == "both"
    assert torch.equal(found["both terms"].energies[0], found["first term only"].energies[0])
    assert not torch.allclose(found["both terms"].energies[-1], found["first term only"].energies[-1])


def test_a_descent_step_by_step_is_the_descent(script, network_and_batch):
    network, batch = network_and_batch
    found, pictures = script.descend_past(network, batch, 5, keep=(0, 5))
    expected = converge(network, batch["image"], batch["masked"], 5)
    for name in ("speed", "energies", "mse"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6), name
    assert set(pictures) == {0, 5} and pictures[5].shape == batch["image"].shape


def test_a_head_left_out_adds_nothing_and_comes_back(script, network_and_batch):
    network, batch = network_and_batch
    network.block.attention.w_query.data *= 50
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = {row["without"]: row["mse"] for row in script.without_heads(network, batch)}
    assert set(rows) == {"nothing", "head 1", "head 2", "all heads", "Hopfield network"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    attention, network.block.attention = network.block.attention, None
    assert rows["all heads"] == pytest.approx(script.error_after(network, batch, 3, 0.5), rel=1e-5)
    network.block.attention = attention
    assert rows["head 1"] != rows["nothing"] != rows["head 2"]


def test_a_start_at_the_originals_is_the_start_without_a_mask(script, network_and_batch):
    network, batch = network_and_batch
    rows = {row["start"]: row for row in script.chosen_starts(network, batch)}
    assert rows["MASK token (as trained)"]["mse_at_T"] == pytest.approx(script.error_after(network, batch, 3, 0.5))
    with torch.no_grad():
        prediction = network(batch["image"], torch.zeros_like(batch["masked"]))
    error = masked_mse(prediction, patchify(batch["image"], 4), batch["masked"]).mean()
    assert rows["original patch"]["mse_at_T"] == pytest.approx(error.item(), rel=1e-5)


def test_everything_from_published_weights(script, monkeypatch, tmp_path):
    def small(image_size=32):
        torch.manual_seed(0)
        return InpaintingET(image_size, 8, dim=16, num_heads=2, head_dim=4, num_memories=24, steps=2).eval()

    monkeypatch.setattr(script, "load_pretrained", small)
    monkeypatch.setattr(script, "SIZES", (16, 32))
    monkeypatch.setattr(script, "RATIOS", (0.25, 0.75))
    script.answer_pretrained(tmp_path, count=3, past=4)
    found = json.loads((tmp_path / "questions_pretrained.json").read_text())
    assert found["model"]["photographs"] == 3 and found["descent"]["photographs"] == 2
    assert [row["patches"] for row in found["image_size"]] == [4, 16]
    assert len(found["descent"]["mse"]) == 9 and found["descent"]["rises_until_T"] == 0
    names = ("questions_pretrained.png", "questions_pretrained_descent.png", "questions_pretrained_past.jpg")
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)


def test_the_numbers_of_the_published_weights_are_those_of_the_page():
    found = json.loads((ROOT / "docs" / "questions_pretrained.json").read_text())
    page = (ROOT / "docs" / "explanation" / "questions.md").read_text()
    rows = [*found["mask_ratio"], *found["image_size"], *found["finer_steps"], *found["heads"], *found["noise"]]
    for value in (row["mse"] for row in rows):
        assert f"{value:.3f}" in page, value
    for row in found["chosen_starts"]:
        assert f"| {row['start']} | {row['mse_at_start']:.3f} | {row['mse_at_T']:.3f} |" in page


def test_every_training_on_the_page_can_be_traced(script):
    found = json.loads((ROOT / "docs" / "questions.json").read_text())
    for training in (found["real"], *found["trainings"]):
        assert all(training[key] is not None for key in ("run", *script.SOURCE)), training["run"]


def test_the_commits_that_documents_name_are_in_the_history():
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout

    if git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("no checkout with its whole history")
    history = set(git("rev-list", "HEAD").split())

    def lost(content: Any) -> list[str]:
        if isinstance(content, list):
            return [commit for item in content for commit in lost(item)]
        if not isinstance(content, dict):
            return []
        named = [content[key] for key in ("commit_in_history", "git_commit", "commit") if key in content][:1]
        found = [commit for value in content.values() for commit in lost(value)]
        return [*found, *(commit for commit in named if commit.removesuffix("+changes") not in history)]

    for path in [*ROOT.glob("docs/*.json"), *ROOT.glob("experiments/*/*.json")]:
        assert not lost(json.loads(path.read_text())), path.name


def test_everything_from_run_folders(script, config, tmp_path):
    real = train(config(*TINY, "trainer.max_epochs=1")).folder
    asked = [o.replace("demo_inpainting", "questions") for o in TINY]
    train(config(*asked, "trainer.max_epochs=1", "model.step_schedule=learned"))
    script.answer(real, tmp_path / "runs", tmp_path / "out", count=4)
    found = json.loads((tmp_path / "out" / "questions.json").read_text())
    (training,) = found["trainings"]
    assert training["schedule"] == "learned" and len(training["learned"]) == 2
    assert (training["experiment"], training["seed"]) == ("questions", 0)
    assert training["versions"]["torch"] == torch.__version__.split("+")[0] and len(training["git_commit"]) >= 7
    assert found["descent"]["rises_until_T"] == 0 and found["real"]["images"] == 4
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "questions_rest.png", "questions_terms.png", "questions_depth.png",
    }  # fmt: skip
    with pytest.raises(UserError, match="no finished run"):
        script.trainings(tmp_path / "nowhere", 4, 2)
