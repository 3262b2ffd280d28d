import csv

from et.metrics_file import MetricsFile


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
