"""What a rank does by itself, without a cluster."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
import torch.distributed as dist

from cluster import rank as rank_module
from cluster.answers import ClipKey, Spent
from cluster.rank import RankWorker
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.identity import digest
from pipeline.store import ObjectStore

RECIPE = find_recipe()


class Finished:
    """A session that is done, and its own latents."""

    step = 4

    def latents(self) -> Finished:
        return self

    def to_bytes(self) -> bytes:
        return b"latents"


def test_a_store_that_does_not_answer_keeps_no_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the next clip's, though the first save is under way still."""
    answers, save = threading.Event(), Checkpoints.save

    def hang(saves: Checkpoints, *what: Any, **how: Any) -> Any:
        answers.wait()
        return save(saves, *what, **how)

    worker = RankWorker(RECIPE.model, RECIPE.gangs[0], 0)
    saves = Checkpoints(ObjectStore(tmp_path), "f" * 64)
    sessions: Any = worker._sessions
    try:
        for hangs in (True, False):
            monkeypatch.setattr(Checkpoints, "save", hang if hangs else save)
            monkeypatch.setattr(rank_module, "SAVE_S", 0.1 if hangs else 60.0)
            key = ClipKey(saves.store.uri, digest(str(hangs)))
            sessions[key] = Finished()
            latents, wrong = worker.finish(key, saves, Spent(0.0, 0.0, "1"))
            assert latents == b"latents"
            assert ("the store didn't answer" in wrong) == hangs
            assert (saves.load(key.clip_id, print) is None) == hangs
    finally:
        answers.set()


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_ranks_meet_on_networks_of_either_kind(ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        socket.create_server((ip, 0), family=socket.AF_INET6 if ":" in ip else socket.AF_INET)
    except OSError as error:
        pytest.skip(f"{ip}: {error}")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: ip)
    worker = RankWorker(RECIPE.model, RECIPE.gangs[0], 0)
    host, port = worker.host(20.0)
    guest = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=20))
    guest.set("rank", "1")
    assert guest.get("rank") == b"1"
