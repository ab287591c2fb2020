"""Nodes that Ray drains: preempted, or scaled down. They end soon, and take nothing new."""

from __future__ import annotations

import os
import threading
import time
from contextlib import AbstractContextManager
from typing import Any, cast

import ray
from ray._private import state

LEAVING_POLL_S = 2.0
"""How soon a node that is about to end is left."""


def find_leaving_nodes() -> set[str]:
    """Return the ids of the nodes that are about to end.

    By what Serve and Data ask, too; Ray has no public way.
    """
    return set(map(str, cast(Any, state).state.get_draining_nodes()))


def leave_in_time(busy: AbstractContextManager[Any]) -> None:
    """Have this actor end once its node is about to, for Ray to start it anew on another.

    `busy` is held by the actor where it mustn't be interrupted. An actor of Ray Data that stays is
    given nothing more, and none is started in its place: its stage would wait for the node's end.
    """
    here = ray.get_runtime_context().get_node_id()

    def watch() -> None:
        while not _is_leaving(here):
            time.sleep(LEAVING_POLL_S)
        with busy:
            os._exit(1)

    threading.Thread(target=watch, name="leaving", daemon=True).start()


def _is_leaving(node: str) -> bool:
    try:
        return node in find_leaving_nodes()
    except Exception:  # noqa: BLE001 - a look that fails is taken again
        return False
