"""python -m et.results.figures run=PATH: what it leaves behind, and what the figures' numbers say."""

import json

import pytest
import torch
from PIL import Image

from et.baselines.vit import InpaintingViT
from et.inpainting import analysis
from et.inpainting.data import InpaintingData
from et.inpainting.figures import animate, draw_figures
from et.inpainting.patches import patchify
from et.inpainting.photos import HELD_OUT, TRAINING, Photos
from et.results.figures import main, parse
from et.runs.loading import load_run
from et.training.run import train
from et.utils.errors import UserError
from tests.configs import TINY

EVERY_RUN = {"examples.png", "best.png", "worst.png", "figures.json"}
ONLY_ET = {
    "positions.png", "memories.png", "memories_all.png", "attention_weights.png", "steps.png", "energies.png",
    "convergence.png", "completion.webp",
}  # fmt: skip


def test_figures_of_an_image_run(config, capsys):
    run = train(config(*TINY, "trainer.max_epochs=1", "data.mask_seeds=2")).folder
    assert main([f"run={run.parent}"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "figures")
    assert {path.name for path in (run / "figures").iterdir()} == EVERY_RUN | ONLY_ET
    for name in ONLY_ET - {"completion.webp"}:
        with Image.open(run / "figures" / name) as image:
            assert min(image.size) > 100 and len(set(image.convert("L").resize((64, 64)).getdata())) > 8, name
    numbers = json.loads((run / "figures" / "figures.json").read_text())
    worst, best = ([error for _, error in numbers[name]] for name in ("worst", "best"))
    assert worst == sorted(worst, reverse=True) and best == sorted(best) and worst[-1] > best[-1]
    assert 0 <= numbers["energy_rises"] <= 1 and len(numbers["rest"]["steps"]) == 8
    assert main([f"run={run}", f"compare={run}", f"output={run}/compared"]) == 0
    assert (run / "compared" / "positions_compared.png").exists()


def test_other_images_than_the_runs_own(config, tmp_path):
    run = train(config(*TINY, "trainer.max_epochs=1")).folder
    for number in range(3):
        Image.effect_noise((90, 100 + number), 50).save(tmp_path / f"{number}.png")
    assert main([f"run={run}", f"images={tmp_path}", "mask_seeds=1"]) == 0
    numbers = json.loads((run / "figures" / "figures.json").read_text())
    assert sorted(index for index, _ in numbers["best"]) == [0, 1, 2]
    assert {len(sizes) for sizes in numbers["update_sizes"].values()} == {3}


def test_pretrained_shows_the_embedded_photographs(config, monkeypatch, tmp_path):
    run = train(config(*TINY, "trainer.max_epochs=1")).folder
    cfg, network = load_run(run)
    monkeypatch.setattr("et.runs.figures.load_run", lambda _: (cfg, network))
    assert main(["run=pretrained", f"output={tmp_path}"]) == 0
    numbers = json.loads((tmp_path / "figures.json").read_text())
    assert len({index for index, _ in numbers["best"] + numbers["worst"]}) == len(TRAINING) + len(HELD_OUT)


def test_a_vit_has_examples_only(tmp_path):
    data = InpaintingData(Photos(16, 4, levels=1), 16, 8, batch_size=64)
    data.source.eval_length = 9
    network = InpaintingViT(16, 8, dim=8, depth=1, num_heads=2)
    numbers = draw_figures(network, data, tmp_path, count=3)
    assert {path.name for path in tmp_path.iterdir()} == EVERY_RUN - {"figures.json"}
    assert set(numbers) == {"worst", "best"}
    errors = analysis.errors_by_image(network, data)
    order = errors.argsort().tolist()
    assert [index for index, _ in numbers["best"]] == order[:3]
    assert [index for index, _ in numbers["worst"]] == order[:-4:-1]
    for index, error in numbers["worst"] + numbers["best"]:
        assert error == pytest.approx(error_of(network, data, index), rel=1e-4)


def error_of(network, data, index) -> float:
    """The error of one image over its masks, taken from the data one by one."""
    found = []
    for seed in range(data.mask_seeds):
        sample = data.test_dataloader().dataset[seed, index]
        difference = network(sample["image"][None], sample["masked"][None])[0] - patchify(sample["image"][None], 8)[0]
        found.append(difference[sample["occluded"]].square().mean().item())
    return sum(found) / len(found)


@pytest.mark.parametrize("suffix", (".webp", ".gif"))
def test_an_animation_has_a_frame_for_every_state(tmp_path, suffix):
    torch.manual_seed(0)
    animate(torch.rand(4, 2, 3, 8, 12), torch.rand(2, 3, 8, 12), tmp_path / f"movie{suffix}", scale=2)
    with Image.open(tmp_path / f"movie{suffix}") as movie:
        assert movie.n_frames == 4 and movie.size == (2 * 12 * 2, 2 * 8 * 2)


def test_what_cannot_be_drawn_is_told(capsys, tmp_path):
    assert main([f"run={tmp_path}"]) == 1
    assert "not a run folder" in capsys.readouterr().err
    assert main(["--help"]) == 0
    with pytest.raises(UserError, match="run= is missing"):
        parse(["output=here"])
    with pytest.raises(UserError, match="comes with it"):
        parse(["run=there", "experiment=demo_inpainting"])
    with pytest.raises(UserError, match="unknown: figure"):
        parse(["run=there", "figure=2"])
