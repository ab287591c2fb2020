"""What a run may have left in the Ray cluster that this process is connected to."""

from __future__ import annotations

from ray._private import state
from ray.util import placement_group_table

from tests.support.command import wait_until

OURS = ("GangPool", "RankWorker", "MapWorker")
"""Classes of actors; Ray Data's end soon after the run that they served."""


def find_leaks() -> list[str]:
    """Return every actor that lives and every placement group that is not removed."""
    actors = [
        f"{actor['ActorClassName']} (pid {actor['Pid']}, {actor['State']})"
        for actor in state.actors().values()
        if actor["State"] != "DEAD" and actor["ActorClassName"].lstrip("_").startswith(OURS)
    ]
    groups = [
        f"placement group {group['placement_group_id']} ({group['state']})"
        for group in placement_group_table().values()
        if group["state"] != "REMOVED"
    ]
    return actors + groups


def check_leaks(within_s: float = 30.0) -> None:
    """Fail unless everything that a run made is gone, or goes soon."""
    try:
        wait_until(lambda: not find_leaks(), within_s, "no leaks")
    except AssertionError:
        raise AssertionError(f"left behind: {find_leaks()}") from None
