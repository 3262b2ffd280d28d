import csv

import pytest

from et.training.metrics_file import MetricsFile


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_and_columns_grow(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 1.5}, 0)
    log.log_metrics({"val/mse": 0.25}, 0)
    log.log_metrics({"train/loss": 1.0}, 10)
    log.save()
    assert read(log.path) == [
        {"step": "0", "train/loss": "1.5", "val/mse": "0.25"},
        {"step": "10", "train/loss": "1.0", "val/mse": ""},
    ]


def test_a_resumed_run_keeps_the_past_and_drops_what_it_repeats(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in (0, 10, 20):
        log.log_metrics({"train/loss": float(step)}, step)
    log.save()
    resumed = MetricsFile(tmp_path / "metrics.csv")
    resumed.forget_from(15)
    resumed.log_metrics({"train/loss": 99.0}, 20)
    resumed.finalize("success")
    assert [(row["step"], row["train/loss"]) for row in read(log.path)] == [
        ("0", "0.0"),
        ("10", "10.0"),
        ("20", "99.0"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    "content",
    (b"step,a\n0,1\n\xff\xfe,2\n", b"\x00\x00\x00", b"step,a\n0,1\n1,one\n", b"stp,a\n0,1\n", b"step,a\n0,1,2,3\n"),
)
def test_a_damaged_file_is_set_aside_and_begun_anew(tmp_path, content, capsys):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    log = MetricsFile(path)
    assert "metrics.csv is damaged" in capsys.readouterr().out
    log.log_metrics({"train/loss": 1.0}, 5)
    log.forget_from(6)
    assert [row["step"] for row in read(path)] == ["5"]
    assert (tmp_path / "metrics.damaged.csv").read_bytes() == content
