"""Entry points: signals in the first seconds, and terminals that cannot show every character."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from et.training.graceful_stop import hand_on
from et.utils.startup import SIGNALS, exit_status, leave, prepare, tolerate_encoding
from tests.configs import ROOT, TINY


@pytest.mark.parametrize(
    ("signum", "status"),
    ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)),
)
def test_a_signal_ends_the_process_with_the_promised_status(signum, status, capfd):
    assert exit_status(signum) == status
    with pytest.raises(SystemExit) as left:
        leave(signum, None)
    assert left.value.code == status
    assert f"interrupted by {signal.Signals(signum).name}" in capfd.readouterr().err


@pytest.mark.slow
def test_a_signal_during_an_import_that_catches_everything(tmp_path):
    lines = (
        "import os, signal",
        "try:",
        "    os.kill(os.getpid(), signal.SIGTERM)",
        "except BaseException:",
        "    pass",
    )
    (tmp_path / "catches.py").write_text("\n".join(lines))
    command = "from et.utils.startup import prepare; prepare(); import catches"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    assert subprocess.run([sys.executable, "-c", command], env=environment, stderr=subprocess.PIPE).returncode == 143


def test_handlers_are_set_once_and_an_ignored_signal_stays_ignored():
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and shells do in the background
        prepare()
        assert signal.getsignal(signal.SIGTERM) is leave and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_only_handlers_of_others_are_handed_a_signal():
    seen = []
    for handler in (leave, signal.default_int_handler, signal.SIG_DFL, None, lambda *args: seen.append(args)):
        hand_on(handler, signal.SIGTERM)
    assert seen == [(signal.SIGTERM, None)]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_terminal_lacks_are_replaced(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # has no encoding to be changed
    tolerate_encoding()
    print("· ━", flush=True)
    assert raw.getvalue().endswith(b" ?\n")


@pytest.mark.slow
def test_signals_in_the_first_seconds(tmp_path):
    """Sent while imports are running: every status is the promised one, and nothing is left behind."""
    environment = {**os.environ, "ET_RUNS_DIR": str(tmp_path)}
    command = [sys.executable, "train.py", "experiment=demo_anomaly"]
    started = {
        signum: subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
        )
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    }
    for signum, process in started.items():
        # The handlers are there once the signal is caught: /proc has the mask of caught signals.
        while not caught(process.pid) >> (signum - 1) & 1 or not caught(process.pid) >> (signal.SIGUSR1 - 1) & 1:
            assert process.poll() is None, f"ended before it had a handler of {signum.name}"
            time.sleep(0.01)
        process.send_signal(signum)
    for signum, process in started.items():
        message = process.communicate()[1]
        assert process.returncode == exit_status(signum), message
        assert message.splitlines()[-1].startswith(f"error: interrupted by {signum.name}")
        assert "Traceback" not in message
    assert not list(tmp_path.rglob("*.*"))


def heed_interrupts() -> None:
    """A shell starts commands in the background with SIGINT ignored, which their children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def caught(pid: int) -> int:
    """Bit mask of the signals that a process has handlers for."""
    with open(f"/proc/{pid}/status") as status:
        return int(next(line for line in status if line.startswith("SigCgt:")).split()[1], 16)


@pytest.mark.slow
def test_a_terminal_and_a_locale_that_are_not_utf8(tmp_path):
    """The run is trained, printed with its progress bar, and recorded."""
    environment = {
        **os.environ, "ET_RUNS_DIR": str(tmp_path), "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }  # fmt: skip
    command = [sys.executable, "train.py", *TINY, "trainer.max_epochs=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"test/mse" in done.stdout
    assert list(tmp_path.glob("*/*/result.json"))
    code = "import sys, pathlib, et.utils.files; et.utils.files.write_atomically(pathlib.Path(sys.argv[1]), '\\xb7')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], cwd=ROOT, env=environment, check=True)
    assert (tmp_path / "x").read_bytes() == "·".encode()
