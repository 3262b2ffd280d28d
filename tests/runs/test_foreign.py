"""A foreign configuration runs nothing, whatever it names and wherever."""

import copy
import json

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from et.runs.figures import draw_run
from et.runs.foreign import TARGETS, TRUSTED, read_config, trusted
from et.runs.identity import config_of, resolve
from et.runs.loading import load_run
from et.runs.record import run_id, write_result
from et.training.evaluation import evaluate, predict
from et.training.reproduction import recorded_run
from et.utils.errors import UserError
from tests.configs import TINY, compose_config
from tests.runs import make_record

CALLS = []


def ran(*arguments, **more):
    CALLS.append(arguments)


HOSTILE = {"_target_": f"{__name__}.ran"}


@pytest.fixture(scope="module")
def plain():
    return resolve(compose_config(*TINY[:-1]))  # with pictures: a class in a section of callbacks


def places(value, path=()):
    """Paths of all mappings and lists in a configuration."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def at(config, path):
    for key in path:
        config = config[key]
    return config


def hostile_configs(plain):
    """The configuration with a hostile class at every place and in every form that Hydra would call."""
    for path in places(plain):
        node = at(plain, path)
        forms = [HOSTILE, [HOSTILE], [[1, HOSTILE]], {"deep": {"er": [HOSTILE]}}, {**HOSTILE, "_partial_": True}]
        forms += [{"_target_": "torch.optim.Adam", "_args_": [HOSTILE]}, {"_target_": ["list"]}, {"_target_": None}]
        for form in forms:
            changed = copy.deepcopy(plain)
            if isinstance(node, dict):
                at(changed, path)["added"] = form
            else:
                at(changed, path).append(form)
            yield path, changed
        if isinstance(node, dict):
            for target in (*(h["_target_"] for h in (HOSTILE,)), "torch.load", "shutil.copy", "io.BytesIO", "os.system",
                           "et.utils.files.write_atomically", "et.runs.loading.torch.load",
                           "torch.optim.Adam.mro"):  # fmt: skip
                changed = copy.deepcopy(plain)
                at(changed, path)["_target_"] = target
                yield path, changed


def test_every_class_that_could_be_named_at_any_depth_is_refused(plain):
    assert trusted(plain, "mine").name == "demo_inpainting"
    count = 0
    for path, config in hostile_configs(plain):
        with pytest.raises(UserError, match="_target_"):
            trusted(config, "theirs")
        count += 1
        assert not CALLS, path
    assert count > 200


@pytest.mark.parametrize(
    "value", ("${oc.env:HOME}", "${oc.create:{_target_:os.system}}", "${name}", "a ${oc.decode:x}", "${now:%Y}")
)
def test_interpolations_are_refused(plain, value):
    for path in places(plain):
        if isinstance(at(plain, path), dict):
            changed = copy.deepcopy(plain)
            at(changed, path)["added"] = value
            with pytest.raises(UserError, match="interpolation"):
                trusted(changed, "theirs")
    hidden = {**plain, "task": {**plain["task"], "_target_": "${name}"}}
    with pytest.raises(UserError, match="interpolation"):
        trusted(hidden, "theirs")


def test_every_reader_of_a_foreign_run_refuses_before_it_does_anything(plain, tmp_path):
    number = 0
    for path, config in hostile_configs(plain):
        if len(path) != 1 or path[0] == "tags":
            continue
        number += 1
        if number % 5:  # one form each
            continue
        folder = tmp_path / str(number)
        (folder / "checkpoints").mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        write_result(folder, make_record(experiment="demo_inpainting", run_id=run_id(config)))
        for name in ("last", "best"):
            torch.save({"state_dict": {}, "config": config}, folder / "checkpoints" / f"{name}.ckpt")
        options = OmegaConf.create({"run": str(folder), "checkpoint": None, "output": None, "images": None,
                                    "mask_seeds": None, "device": "cpu", "progress": False})  # fmt: skip
        single = folder / "checkpoints" / "last.ckpt"
        readers = (
            lambda folder=folder: load_run(folder), lambda single=single: load_run(single),
            lambda folder=folder: recorded_run(folder), lambda options=options: evaluate(options),
            lambda folder=folder: predict(folder), lambda folder=folder: draw_run(folder),
        )  # fmt: skip
        for read in readers:
            with pytest.raises(UserError, match="_target_"):
                read()
        assert not CALLS
    assert number > 20


def test_a_record_alone_cannot_name_a_configuration_elsewhere(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(make_record(experiment="../../evil")))
    with pytest.raises(UserError, match="experiment must be the name of a folder"):
        recorded_run(tmp_path / "result.json")


def test_what_is_listed_are_classes_that_only_hold_or_compute():
    for target in TARGETS:
        found = get_object(target)
        built = found if isinstance(found, type) else found.__self__
        assert isinstance(built, type) and built.__module__.split(".")[0] in ("et", "torch", "pytorch_lightning"), (
            target
        )


def test_every_experiments_own_configuration_is_trusted():
    for name in ("demo_inpainting", "demo_anomaly", "demo_graphs", "tu_mutag_gin", "imagenet_published"):
        trusted(config_of([f"experiment={name}"]), name)


@pytest.mark.parametrize("value", (b"bytes", {1: 2, "a": 3}))
def test_values_that_no_run_writes_are_refused(plain, value):
    with pytest.raises(UserError, match="holds values that no run writes"):
        trusted({**plain, "tags": value}, "theirs")


def test_a_file_that_is_too_large_is_not_parsed(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n" * 400_000)
    with pytest.raises(UserError, match="is larger than"):
        read_config(tmp_path / "config.yaml")


def test_a_file_does_not_choose_where_scores_are_written(plain):
    node = {"_target_": "et.inpainting.scores.ImageScores", "resume": True}
    trusted({**plain, "callbacks": {**plain["callbacks"], "scores": node}}, "theirs")
    with pytest.raises(UserError, match=r"may set resume of .*ImageScores, and nothing else"):
        trusted({**plain, "callbacks": {**plain["callbacks"], "scores": {**node, "folder": "/tmp"}}}, "theirs")


def test_a_class_of_ones_own_is_vouched_for(plain, monkeypatch):
    config = {**plain, "model": HOSTILE}
    with pytest.raises(UserError, match=f"set {TRUSTED}={HOSTILE['_target_']}"):
        trusted(config, "mine")
    monkeypatch.setenv(TRUSTED, f"other.Thing, {HOSTILE['_target_']}")
    assert trusted(config, "mine").model._target_ == HOSTILE["_target_"]


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("[1, 2]", "not a configuration"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: [", "not a readable configuration"),
        ("a: !!python/object/apply:os.system [ls]", "not a readable configuration"),
        ("name: x", "no section data"),
        ("\x00", "not a readable configuration"),
    ),
)
def test_files_that_are_no_configuration_are_told(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(UserError, match="not a readable configuration"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ("../../escape", "/tmp/escape", "..", ".hidden", "a/b", "", "a\nb", "a\\b", 3))
def test_a_name_that_leads_elsewhere_is_refused(plain, name):
    with pytest.raises(UserError, match="must be the name of a folder"):
        trusted({**plain, "name": name}, "theirs")
