"""SIGTERM, as a run hears it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.stop import LAST_WORDS, STOPPED, StopSignal, has_stop_come, stop_signals
from pipeline.lease import Lease
from pipeline.store import ObjectStore


def test_the_first_one_stops_and_is_remembered_and_the_next_are_ignored() -> None:
    with stop_signals():
        assert not has_stop_come()
        with pytest.raises(StopSignal):
            os.kill(os.getpid(), signal.SIGTERM)
        assert has_stop_come()
        os.kill(os.getpid(), signal.SIGTERM)
    assert not has_stop_come()


FETCHES = """
import os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from jobs.stop import stop_signals

def plan_call():
    with ThreadPoolExecutor(1) as threads:
        threads.submit(time.sleep, 60)
        os.kill(os.getpid(), signal.SIGTERM)

def say(text):
    print("told:", text, flush=True)

with stop_signals(*sys.argv[1:] and (say,)):
    plan_call()
"""


@pytest.mark.parametrize("how", ["told", ""])
def test_a_model_that_is_being_fetched_is_not_waited_for(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FETCHES, *filter(None, [how])],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == STOPPED
    out, err = (f"told: {LAST_WORDS}\n", "") if how else ("", f"rushes: {LAST_WORDS}\n")
    assert (done.stdout, done.stderr) == (out, err)


class StoppedAtTheLease(ObjectStore):
    """A store during whose first create SIGTERM comes."""

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_lease_is_handed_on_before_a_run_is_stopped(tmp_path: Path) -> None:
    held: list[Lease] = []

    def run() -> None:
        held.append(Lease.acquire(StoppedAtTheLease(tmp_path), 60.0))
        threading.Event().wait(60.0)

    with stop_signals(), pytest.raises(StopSignal):
        run()
    assert len(held) == 1
