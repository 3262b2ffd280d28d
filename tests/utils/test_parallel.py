from __future__ import annotations

import os
import signal

import pytest
import rich.progress
from threadpoolctl import threadpool_info

from et.utils import parallel
from et.utils.errors import UserError
from et.utils.parallel import parallel_map


def product(a: int, b: int) -> tuple[int, int]:
    return a * b, os.getpid()


def most_threads(_: int) -> int:
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    return max((library["num_threads"] for library in threadpool_info()), default=1)


@pytest.mark.parametrize("bar", [False, True])
def test_processes_give_the_results_in_order(monkeypatch, bar):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    shown, track = [], rich.progress.track
    monkeypatch.setattr(rich.progress, "track", lambda work, **how: shown.append(how) or track(work, **how))
    work = list(range(20)), list(range(100, 120))
    alone, shared = (
        parallel_map(product, *work, what="products", parallel=p, bar=bar, together=3) for p in (False, True)
    )
    expected = [a * b for a, b in zip(*work, strict=True)]
    assert [value for value, _ in alone] == [value for value, _ in shared] == expected
    assert {pid for _, pid in alone} == {os.getpid()} and os.getpid() not in {pid for _, pid in shared}
    assert [(how["description"], how["total"]) for how in shown] == [("products", 20)] * 2 * bar


def test_a_process_has_one_thread_for_linear_algebra(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    assert set(parallel_map(most_threads, range(4), what="", parallel=True, bar=False, together=1)) == {1}


def test_cores_are_those_one_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert parallel.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def killed(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    with pytest.raises(UserError, match=r"eigenvectors: a process was killed \(out of memory\?\)"):
        parallel_map(killed, range(4), what="eigenvectors", parallel=True, bar=False, together=1)
