"""Tell that a cluster, or the local one that was started here, is lost; and end what it left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, cast

import psutil
import ray
from ray._private import ray_constants, worker
from ray.exceptions import RayError

LOSS_POLL_S = 1.0
HEAR_POLL_S = 0.5
SILENCE_S, LOST_S = 5.0, 30.0
"""After so long without an answer of Ray's head that is told, and the cluster given up.

After a minute Ray 2.60 ends a driver by itself, without a word.
"""
UNSAVED = "no word that it was saved: what is unfinished goes on from its last save"
_SILENT = f"Ray's head gives no answer; after {LOST_S:.0f} s without one, this ends"
_ESSENTIAL = {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER}
_lost = threading.Event()


def wait_for_loss(say: Callable[[str], None], ended: threading.Event | None = None) -> bool:
    """Return True once the cluster is lost to this process, with what a local one has left ended.

    That is where its node is, or Ray's head gives no answer: Ray 2.60 tells a driver nothing of it,
    and actors that nobody calls live on. That the head is silent is said first. False: `ended` is
    set.
    """
    _lost.clear()
    ended = ended or threading.Event()
    here: str = cast(Any, ray).get_runtime_context().get_node_id()
    started = set[psutil.Process]()
    while any(node["NodeID"] == here and node["Alive"] for node in _ask_nodes(say, ended)):
        # Once the raylet is dead, what it has started is nobody's child.
        started = {each for each in started if each.is_running()}
        started |= set(psutil.Process().children(recursive=True))
        ended.wait(LOSS_POLL_S)
    if ended.is_set():
        return False
    _lost.set()
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    return True


def is_gone() -> bool:
    """Return whether the cluster was seen to be lost, or a local one has ended by itself.

    As where systemd stops a service: by default it tells every process of it at once.
    """
    if _lost.is_set():
        return True
    node = getattr(cast(Any, worker).global_worker, "node", None)
    dead = {name for name, _ in node.dead_processes()} if node else set[str]()
    return not dead.isdisjoint(_ESSENTIAL)


def hear(answer: Any, timeout_s: float) -> Any:
    """Return an actor's answer; None if there is none in time, or the cluster is lost."""
    until = time.monotonic() + timeout_s
    with suppress(RayError):
        while time.monotonic() < until and not is_gone():
            if cast(Any, ray).wait([answer], timeout=HEAR_POLL_S)[0]:
                return cast(Any, ray).get(answer)
    return None


def _ask_nodes(say: Callable[[str], None], ended: threading.Event) -> list[dict[str, Any]]:
    """Return the cluster's nodes; none once it is lost, or `ended` is set."""
    answers = SimpleQueue[list[dict[str, Any]]]()
    asking = threading.Thread(target=lambda: answers.put(cast(Any, ray).nodes()), daemon=True)
    asking.start()
    asked_at, is_told = time.monotonic(), False
    while not (is_gone() or ended.is_set()):
        with suppress(Empty):
            return answers.get(timeout=HEAR_POLL_S)
        silent_s = time.monotonic() - asked_at
        if silent_s > LOST_S:
            break
        if silent_s > SILENCE_S and not is_told:
            say(_SILENT)
            is_told = True
    return []
