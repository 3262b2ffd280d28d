import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from et.errors import UserError
from et.evaluation import evaluate
from et.training import train
from tests.configs import ROOT, TINY


def options(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", ["progress=false", "device=cpu", *overrides])


def test_a_run_is_scored_again_with_equal_numbers(config):
    trained = train(config(*TINY))
    record = evaluate(options(f"run={trained.folder}"))
    assert record["metrics"] == trained.record["metrics"]
    assert (trained.folder / "evaluation" / "completions.png").exists()
    assert (trained.folder / "evaluation" / "photo_chelsea.png").exists()


def test_other_images_can_be_completed(config, tmp_path):
    trained = train(config(*TINY))
    (tmp_path / "mine").mkdir()
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "mine" / "noise.png")
    record = evaluate(options(f"run={trained.folder}", f"images={tmp_path}/mine", f"output={tmp_path}/out"))
    assert record["dataset"]["evaluation_images"] == 1 and record["metrics"]["test/mse"] > 0
    assert (tmp_path / "out" / "evaluation.json").exists()


def test_what_cannot_be_evaluated_is_told(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate(options(f"run={tmp_path}/absent.ckpt"))
    with pytest.raises(UserError, match="no run folder"):
        evaluate(options(f"run={tmp_path}"))
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        evaluate(options(f"run={tmp_path}/broken.ckpt"))
