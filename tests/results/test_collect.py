"""Records are taken only where they and their configurations agree; everything else is said, not dropped."""

from __future__ import annotations

import json

import pytest
import yaml

from et.results import collect as collecting
from et.results import paper
from et.results.collect import STALE, append, collect, from_folder, from_line, home
from et.results.measured import lines_of
from et.results.report import other_runs
from et.runs.identity import Key, config_of, reproduces
from et.runs.record import read_result, run_id, verified, write_result
from et.utils.errors import UserError
from et.utils.paths import EXPERIMENTS
from tests.results.folders import write_metrics
from tests.runs import make_record

KEY = Key("amazon_1pct", 0, "held_out", "paper")
METRICS = {"test/f1_macro": 0.9, "test/auc": 0.95}


def test_a_run_of_the_experiments_own_configuration_has_no_label(make_run):
    run = from_folder(make_run(KEY, METRICS))
    assert (run.key, run.label, run.variant) == (KEY, "", "")
    assert run.overrides == tuple(KEY.overrides())


def test_another_configuration_is_labelled_with_what_differs(make_run):
    run = from_folder(make_run(KEY, METRICS, "trainer.max_epochs=3", "model.dropout=0.3"))
    assert run.label == "model.dropout=0.3, trainer.max_epochs=3"


def test_a_value_that_follows_another_is_said_where_the_other_has_changed(make_run):
    """model.dim is model.head_dim unless given; this run has the experiment's own dim and another head_dim."""
    own = config_of(KEY.overrides())["model"]
    run = from_folder(make_run(KEY, METRICS, "model.head_dim=16", f"model.dim={own['dim']}"))
    assert own["dim"] == own["head_dim"] != 16
    assert run.overrides == (*KEY.overrides(), f"model.dim={own['dim']}", "model.head_dim=16")
    assert reproduces(run.overrides, run.record["run_id"])


def test_other_data_are_a_variant(make_run):
    assert from_folder(make_run(KEY, METRICS, dataset={"variant": "half of it"})).variant == "half of it"
    assert from_folder(make_run(KEY, METRICS, dataset={"variant": "exact (no paper has it)"})).variant == ""


@pytest.mark.parametrize("text", ["", "{", '{"run_id": "abc"}', "[1, 2]", "null"])
def test_a_corrupt_result_is_reported_and_treated_as_missing(make_run, tmp_path, text):
    folder = make_run(KEY, METRICS)
    (folder / "result.json").write_text(text)
    found = collect([tmp_path / "runs"])
    assert not found.runs
    assert len(found.problems) == 1 and found.problems[0].startswith("corrupt")


@pytest.mark.parametrize(
    "changes",
    (
        {"metrics": [1]}, {"metrics": {"test/auc": "high"}}, {"metrics": None}, {"dataset": "amazon"}, {"seed": "0"},
        {"seed": [0]}, {"experiment": ["x"]}, {"experiment": "../../x"}, {"run_id": 3}, {"seconds": "long"},
        {"versions": []}, {"protocol": {}}, {"num_params": True}, {"epochs": None},
        {"metrics": {"test/auc": 10**400}}, {"seconds": 10**400}, {"dataset": {"name": []}},
        {"protocol": "${oc.env:HOME}"}, {"fidelity": "paper data.fold=1"},
    ),
)  # fmt: skip
def test_a_malformed_record_is_skipped_and_named_and_the_others_are_shown(make_run, tmp_path, changes):
    bad = make_run(Key("amazon_1pct", 1, "held_out", "paper"), METRICS)
    make_run(KEY, METRICS)
    record = {**json.loads((bad / "result.json").read_text()), **changes}
    record.pop("record_sha256")
    (bad / "result.json").write_text(json.dumps(record))
    line = json.dumps({**record, "overrides": Key("amazon_1pct", 1, "held_out", "paper").overrides()})
    (tmp_path / "results.jsonl").write_text(line + "\n")
    found = collect([tmp_path / "runs"], [tmp_path / "results.jsonl"])
    assert [run.key for run in found.runs.values()] == [KEY]
    assert len(found.problems) == 2
    assert bad.name in found.problems[0] and "results.jsonl:1" in found.problems[1]
    assert any(line.runs for line in lines_of(paper.load(1), found))


@pytest.mark.parametrize("text", ["[" * 5000, "\x00"])
def test_what_no_parser_takes_is_named_too(make_run, tmp_path, text):
    bad, other = (make_run(Key("amazon_1pct", seed, "held_out", "paper"), METRICS) for seed in (0, 1))
    (bad / "result.json").write_text(text)
    (other / "config.yaml").write_bytes(b"name: \xff")
    found = collect([tmp_path / "runs"])
    assert not found.runs and len(found.problems) == 2


def test_a_changed_digit_in_a_record_is_noticed(make_run, tmp_path):
    folder = make_run(KEY, METRICS)
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace("0.95", "0.96"))
    assert "is damaged: its checksum does not match" in collect([tmp_path / "runs"]).problems[0]


def test_a_changed_digit_in_a_line_is_noticed(make_run, tmp_path):
    make_run(KEY, METRICS)
    file = tmp_path / "results.jsonl"
    append(collect([tmp_path / "runs"]).runs.values(), file)
    assert not collect(lines=[file]).problems
    file.write_text(file.read_text().replace("0.95", "0.96"))
    (problem,) = collect(lines=[file]).problems
    assert "results.jsonl:1" in problem and "checksum does not match" in problem


def test_a_byte_that_is_not_utf8_costs_one_line_and_stays_as_it_is(make_run, tmp_path):
    file = tmp_path / "results.jsonl"
    for seed in (0, 1):
        make_run(Key("amazon_1pct", seed, "held_out", "paper"), METRICS)
    append(collect([tmp_path / "runs"]).runs.values(), file)
    first, second = file.read_bytes().splitlines()
    file.write_bytes(first.replace(b"amazon", b"amaz\xffn") + b"\n")
    found = collect(lines=[file])
    assert not found.runs and found.problems[0].startswith("corrupt: ")
    append(collect([tmp_path / "runs"]).runs.values(), file)
    kept, *added = file.read_bytes().splitlines()
    assert b"\xff" in kept and second in added
    assert len(collect(lines=[file]).runs) == 1 + (first in added)


def test_a_line_whose_overrides_read_the_environment_is_left_out(make_run, line_of):
    folder = make_run(KEY, METRICS)
    for extra in ("+x=${oc.env:HOME}", "hydra.searchpath=[file:///tmp]", "+hydra.job.env_set.A=1"):
        with pytest.raises(UserError, match="no run is recorded with"):
            from_line(line_of(folder, [*KEY.overrides(), extra]), "results.jsonl:1")


def test_no_class_that_a_record_names_is_built_unless_it_is_trusted(tmp_path, line_of, monkeypatch):
    """Counts that are null are read from the data, which has them built: a folder or a line could name anything."""
    own = config_of(["experiment=demo_graphs"])
    key = Key("demo_graphs", 0, "held_out", "paper", own["data"]["fold"])
    marker = tmp_path / "ran"
    hostile = {"_target_": "os.mkdir", "path": str(marker)}
    config = {**own, "data": {**own["data"], "num_features": None, "path": hostile}}
    folder = tmp_path / "runs" / "demo_graphs" / run_id(config)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record = make_record(
        experiment=key.experiment, protocol=key.protocol, fidelity=key.fidelity, run_id=run_id(config),
        dataset={"name": "digits", "variant": "exact", "sha256": "0", "fold": key.fold},
    )  # fmt: skip
    write_result(folder, record)
    value = f"{{_target_:os.mkdir,path:{marker}}}"
    line = line_of(folder, [*key.overrides(), "data.num_features=null", f"+data.path={value}"])
    (tmp_path / "results.jsonl").write_text(line + "\n")
    for source in ({"roots": [tmp_path / "runs"]}, {"lines": [tmp_path / "results.jsonl"]}):
        found = collect(**source)
        assert not marker.exists()
        assert all(run.label.startswith(STALE) for run in found.runs.values())
    assert "names 'os.mkdir', which is not called" in collect([tmp_path / "runs"]).problems[0]
    with pytest.raises(UserError, match="which is not called"):
        config_of([*key.overrides(), "model._target_=os.mkdir"], "a file")


def test_runs_on_a_users_own_data_are_in_no_table_and_not_recorded(make_run, tmp_path):
    make_run(Key("amazon_1pct", 0, "held_out", "paper"), {}, dataset={"name": "mine", "variant": "user data"})
    found = collect([tmp_path / "runs"])
    (run,) = found.runs.values()
    assert run.of_user_data and not found.problems
    assert not any(line.runs for line in lines_of(paper.load(1), found))
    assert list(other_runs(found)) == [("amazon_1pct", "held_out")]
    count, problems = append([run], tmp_path / "results.jsonl")
    assert count == 0 and "no table is about" in problems[0]


def test_a_half_written_result_is_reported(make_run, tmp_path):
    folder = make_run(KEY, METRICS)
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text[: len(text) // 2])
    found = collect([tmp_path / "runs"])
    assert not found.runs and found.problems[0].startswith("corrupt")


def test_a_record_of_another_configuration_is_foreign(make_run, tmp_path):
    folder = make_run(KEY, METRICS)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["num_heads"] = 7
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = collect([tmp_path / "runs"])
    assert not found.runs and found.problems[0].startswith("foreign")


def test_a_key_that_was_absent_and_is_null_now_marks_another_configuration(make_run, monkeypatch):
    folder = make_run(KEY, METRICS)

    def with_a_new_key(overrides):
        config = config_of(overrides)
        return {**config, "model": {**config["model"], "new_key": None}}

    monkeypatch.setattr(collecting, "config_of", with_a_new_key)
    assert from_folder(folder).label == STALE


@pytest.mark.parametrize("change", [{"seed": 4}, {"experiment": "amazon_40pct"}, {"protocol": "released"}])
def test_a_record_that_claims_another_cell_is_foreign(make_run, change):
    with pytest.raises(UserError, match="foreign"):
        from_folder(make_run(KEY, METRICS, **change))


def test_a_record_without_configuration_is_foreign(make_run):
    folder = make_run(KEY, METRICS)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match="foreign"):
        from_folder(folder)


def test_an_experiment_that_no_longer_exists_is_marked(make_run, monkeypatch):
    folder = make_run(KEY, METRICS)

    def gone(overrides):
        raise UserError("no such experiment")

    monkeypatch.setattr(collecting, "config_of", gone)
    assert from_folder(folder).label == STALE


def test_roots_are_merged_by_run_id_and_duplicates_reported(make_run, tmp_path):
    folder = make_run(KEY, METRICS)
    make_run(Key("amazon_1pct", 1, "held_out", "paper"), METRICS)
    copy = tmp_path / "elsewhere" / "deep" / "down" / folder.name
    copy.mkdir(parents=True)
    for name in ("result.json", "config.yaml"):
        (copy / name).write_text((folder / name).read_text())
    found = collect([tmp_path / "runs", tmp_path / "elsewhere"])
    assert len(found.runs) == 2
    assert len(found.problems) == 1 and "with the same metrics" in found.problems[0]
    changed = read_result(copy)
    changed["metrics"]["test/auc"] = 0.1
    write_result(copy, changed)
    found = collect([tmp_path / "runs", tmp_path / "elsewhere"])
    assert "with other metrics" in found.problems[0]
    assert found.runs[folder.name].record["metrics"] == METRICS


def test_collected_lines_read_back_as_the_same_runs(make_run, tmp_path):
    make_run(KEY, METRICS)
    make_run(KEY, METRICS, "trainer.max_epochs=3", "+trainer.limit_train_batches=8")
    make_run(Key("amazon_1pct", 2, "released", "released"), METRICS)
    runs = collect([tmp_path / "runs"]).runs
    assert "+trainer.limit_train_batches=8, trainer.max_epochs=3" in {run.label for run in runs.values()}
    file = tmp_path / "table01" / "results.jsonl"
    assert append(runs.values(), file) == (3, [])
    assert append(runs.values(), file) == (0, [])
    again = collect(lines=[file])
    assert not again.problems
    assert {i: (r.record["metrics"], r.key, r.label) for i, r in again.runs.items()} == {
        i: (r.record["metrics"], r.key, r.label) for i, r in runs.items()
    }


def test_a_run_and_its_own_line_are_one_run(make_run, tmp_path):
    make_run(KEY, METRICS)
    make_run(Key("amazon_1pct", 2, "held_out", "paper"), METRICS)
    file = tmp_path / "results.jsonl"
    append(collect([tmp_path / "runs"]).runs.values(), file)
    found = collect([tmp_path / "runs"], [file])
    assert len(found.runs) == 2
    assert found.problems == []
    assert found.reports() == ["duplicate: 2 runs are in run folders and recorded lines, equal; counted once"]


def test_a_part_of_a_collection_has_the_problems_that_may_concern_it(make_run, tmp_path):
    other = Key("yelp_1pct", 0, "held_out", "paper")
    make_run(KEY, METRICS)
    folder = make_run(other, METRICS)
    (tmp_path / "copy").mkdir()
    for name in ("result.json", "config.yaml"):
        (tmp_path / "copy" / name).write_text((folder / name).read_text())
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    found = collect([tmp_path / "runs", tmp_path / "copy"])
    ours, theirs = found.of([KEY.experiment]), found.of([other.experiment])
    assert [run.key for run in ours.runs.values()] == [KEY] and [run.key for run in theirs.runs.values()] == [other]
    assert [problem.split(":")[0] for problem in ours.reports()] == ["corrupt"]
    assert sorted(problem.split(":")[0] for problem in theirs.reports()) == ["corrupt", "duplicate"]


def test_a_line_has_the_thinned_curves_of_its_run(make_run, tmp_path):
    folder = make_run(KEY, METRICS)
    write_metrics(folder, steps=500)
    file = tmp_path / "results.jsonl"
    append(collect([tmp_path / "runs"]).runs.values(), file)
    (run,) = collect(lines=[file]).runs.values()
    assert {name: len(steps) for name, (steps, _) in run.record["curves"].items()} == {
        "train/loss": 20, "val/f1_macro": 20,
    }  # fmt: skip
    assert len(file.read_text()) < 3000


def test_a_line_whose_configuration_has_changed_since_is_marked(make_run, line_of):
    line = line_of(make_run(KEY, METRICS, "trainer.max_epochs=3"), KEY.overrides())
    assert from_line(line, "here:1").label == STALE


def test_a_line_whose_overrides_are_of_another_cell_is_foreign(make_run, line_of):
    line = line_of(make_run(KEY, METRICS), Key("amazon_1pct", 1, "held_out", "paper").overrides())
    with pytest.raises(UserError, match="foreign"):
        from_line(line, "here:1")


@pytest.mark.parametrize("experiments", [None, [KEY.experiment]])
@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"overrides": []}', '{"overrides": ["seed"]}', '{"experiment": []}', 100_000 * "["],
    ids=range(7),
)
def test_a_broken_line_is_reported(tmp_path, line, experiments):
    file = tmp_path / "results.jsonl"
    file.write_text(line + "\n\n")
    found = collect(lines=[file], experiments=experiments)
    assert not found.runs
    assert found.problems[0].startswith("corrupt") and found.problems[0].count("results.jsonl:1") == 1


def test_appending_after_a_broken_line_keeps_it_and_adds(make_run, tmp_path):
    make_run(KEY, METRICS)
    file = tmp_path / "results.jsonl"
    file.write_text('{"half a li\n')
    assert append(collect([tmp_path / "runs"]).runs.values(), file)[0] == 1
    assert len(collect(lines=[file]).runs) == 1


def test_what_overrides_cannot_make_is_not_recorded(make_run, tmp_path):
    folder = make_run(KEY, METRICS, "optim=adamw_cosine")
    count, problems = append(collect([tmp_path / "runs"]).runs.values(), tmp_path / "results.jsonl")
    run = from_folder(folder)
    assert run.label
    assert count + len(problems) == 1
    if problems:
        assert "not recorded" in problems[0]


def test_runs_in_linked_folders_are_read_once(make_run, tmp_path):
    folder = make_run(KEY, METRICS)
    elsewhere = tmp_path / "disk" / folder.parent.name
    elsewhere.parent.mkdir()
    folder.parent.rename(elsewhere)
    folder.parent.symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(elsewhere)
    found = collect([tmp_path / "runs"])
    assert len(found.runs) == 1 and not found.problems


def test_only_the_experiments_asked_for(make_run, tmp_path):
    make_run(KEY, METRICS)
    assert not collect([tmp_path / "runs"], experiments=["yelp_1pct"]).runs


def test_every_experiment_has_one_home():
    assert home("amazon_1pct") == 1
    assert home("amazon_1pct_no_hopfield") == 13
    assert home("imagenet_inpainting") in (14, 15)
    assert home("no_such_experiment") is None


def test_the_command_line(make_run, tmp_path, capsys):
    make_run(KEY, METRICS)
    arguments = ["--runs", str(tmp_path / "runs"), "--experiments", str(tmp_path / "experiments")]
    assert collecting.main(["1", "13", *arguments]) == 0
    assert "table 1: 1 runs written to" in capsys.readouterr().out
    assert (tmp_path / "experiments/table01/results.jsonl").exists()
    assert not (tmp_path / "experiments/table13/results.jsonl").exists()
    with pytest.raises(UserError, match="there is no folder"):
        collecting.main(["1", "--runs", str(tmp_path / "nowhere")])


def test_every_committed_line_has_its_checksum():
    lines = [line for file in EXPERIMENTS.glob("*/results.jsonl") for line in file.read_text().splitlines()]
    records = [json.loads(line) for line in lines]
    assert records and all(verified(record, "") != record for record in records)
