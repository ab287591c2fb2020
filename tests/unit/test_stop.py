"""SIGTERM, SIGHUP and Ctrl-C, as a run hears them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.stop import LAST_WORDS, STOPPED, StopSignal, break_off, find_stop, stop_signals
from pipeline.lease import Lease
from pipeline.store import ObjectStore


@pytest.fixture(autouse=True)
def hangups_heard() -> Iterator[None]:
    """Have SIGHUP do what it does by default, also under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_one_stops_and_is_remembered_and_the_next_are_ignored(
    number: signal.Signals,
) -> None:
    with stop_signals():
        assert find_stop() is None
        with pytest.raises(StopSignal, match=number.name):
            os.kill(os.getpid(), number)
        assert find_stop() == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(StopSignal, match=number.name):
            os.kill(os.getpid(), signal.SIGINT)
    assert find_stop() is None


def test_a_closed_terminal_is_nothing_to_who_ignores_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_is_nothing_to_who_ignores_it_but_the_run_itself_can_break_off() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGINT)
            break_off()
            with pytest.raises(KeyboardInterrupt):
                threading.Event().wait(10.0)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


PASSED_OVER = """
import os, signal, sys, time
from jobs.stop import stop_signals

class Pressed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIG{})
        time.sleep(0)

with stop_signals():
    try:
        Pressed()
        time.sleep(60)
    except KeyboardInterrupt as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize(("name", "raised"), [("INT", "KeyboardInterrupt"), ("TERM", "StopSignal")])
def test_what_python_passes_over_is_raised_again(name: str, raised: str) -> None:
    done = run_python(PASSED_OVER.format(name))
    assert (done.stdout, done.stderr) == (f"{raised}\n", "")


FORKS = """
import logging, os, signal, sys, time
from threading import Thread
from jobs.stop import stop_signals

def press(frame, event, _):
    if event == "call" and frame.f_code.co_name == "_releaseLock":
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)

with stop_signals():
    try:
        sys.setprofile(press)
        if os.fork() == 0:
            os._exit(0)
        time.sleep(60)
    except KeyboardInterrupt:
        other = Thread(target=logging.getLogger("another").setLevel, args=[10], daemon=True)
        other.start()
        other.join(5)
        print("free:", not other.is_alive())
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="logging has another lock there")
def test_ctrl_c_as_a_process_forks_leaves_logging_free() -> None:
    done = run_python(FORKS)
    assert (done.stdout, done.stderr) == ("free: True\n", "")


def run_python(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


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
    done = run_python(FETCHES, *filter(None, [how]))
    assert done.returncode == STOPPED
    words = LAST_WORDS.format("SIGTERM")
    out, err = (f"told: {words}\n", "") if how else ("", f"rushes: {words}\n")
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
