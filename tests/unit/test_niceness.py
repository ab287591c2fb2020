import os
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


def test_what_loading_raises_is_raised() -> None:
    def load() -> None:
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        load_stepping_back(load)
