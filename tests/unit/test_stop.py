"""SIGTERM, as a run hears it."""

from __future__ import annotations

import os
import signal

import pytest

from jobs.stop import StopSignal, has_stop_come, stop_signals


def test_the_first_one_stops_and_is_remembered_and_the_next_are_ignored() -> None:
    with stop_signals():
        assert not has_stop_come()
        with pytest.raises(StopSignal):
            os.kill(os.getpid(), signal.SIGTERM)
        assert has_stop_come()
        os.kill(os.getpid(), signal.SIGTERM)
    assert not has_stop_come()
