"""Tell that a cluster, or the local one that was started here, is lost; and end what it left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import psutil
import ray
from ray._private import ray_constants, worker
from ray.exceptions import RayError

LOSS_POLL_S = 1.0
HEAR_POLL_S = 0.5
SILENCE_S = 5.0
UNSAVED = "no word that it was saved: what is unfinished goes on from its last save"
_SILENT = "Ray's head gives no answer; if it stays away for a minute, this ends"
_ESSENTIAL = {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER}


def wait_for_loss(say: Callable[[str], None]) -> None:
    """Return once this process's node is lost, with what a local cluster has left ended.

    Ray 2.60 tells a driver nothing of it, and actors that nobody calls live on. Of a GCS that is
    gone for a minute it ends the driver by itself, without a word: that it is silent is said.
    """
    here: str = cast(Any, ray).get_runtime_context().get_node_id()
    started = set[psutil.Process]()
    while any(node["NodeID"] == here and node["Alive"] for node in _ask_nodes(say)):
        # Once the raylet is dead, what it has started is nobody's child.
        started = {each for each in started if each.is_running()}
        started |= set(psutil.Process().children(recursive=True))
        time.sleep(LOSS_POLL_S)
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def is_gone() -> bool:
    """Return whether the local cluster that was started here has ended, though nobody ended it.

    As where systemd stops a service: by default it tells every process of it at once.
    """
    node = getattr(cast(Any, worker).global_worker, "node", None)
    dead = {name for name, _ in node.dead_processes()} if node else set[str]()
    return not dead.isdisjoint(_ESSENTIAL)


def hear(answer: Any, timeout_s: float) -> Any:
    """Return an actor's answer; None if there is none in time, or the local cluster is lost."""
    until = time.monotonic() + timeout_s
    with suppress(RayError):
        while time.monotonic() < until and not is_gone():
            if cast(Any, ray).wait([answer], timeout=HEAR_POLL_S)[0]:
                return cast(Any, ray).get(answer)
    return None


def _ask_nodes(say: Callable[[str], None]) -> list[dict[str, Any]]:
    silent = threading.Timer(SILENCE_S, say, (_SILENT,))
    silent.daemon = True
    silent.start()
    try:
        return cast(Any, ray).nodes()
    finally:
        silent.cancel()
