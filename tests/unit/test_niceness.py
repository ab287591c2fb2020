import os
import subprocess
import sys
import threading

import pytest

from cluster.niceness import STEP_BACK, load_stepping_back

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness here")


def test_what_loads_steps_back_and_nobody_else_does() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)

    def load() -> tuple[int, int]:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), threading.get_ident()

    niceness, thread = load_stepping_back(load)
    assert niceness == min(19, before + STEP_BACK)
    assert thread != threading.get_ident()
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


IN_A_PROCESS_OF_ITS_OWN = """
import os, threading

from cluster.niceness import step_back

there, over = threading.Event(), threading.Event()
thread = threading.Thread(target=lambda: (there.set(), over.wait()))
thread.start()
there.wait()
threads = threading.get_native_id(), thread.native_id

def read():
    return [os.getpriority(os.PRIO_PROCESS, each) for each in threads]

before = read()
step_back()
print(*before, *read())
over.set()
"""


def test_threads_that_are_there_already_step_back_too() -> None:
    command = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    caller, other, *after = map(int, done.stdout.split())
    assert after == [min(19, caller + STEP_BACK), min(19, other + STEP_BACK)]


def test_what_loading_raises_is_raised() -> None:
    def load() -> None:
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        load_stepping_back(load)
