"""What a rank does by itself, without a cluster."""

from __future__ import annotations

import gc
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from cluster import rank as rank_module
from cluster.answers import ClipKey, Spent
from cluster.rank import RankWorker
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.denoise import Denoiser, DenoiseSession
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.handoff import Conditioning, pack, unpack
from pipeline.identity import digest
from pipeline.model import resolve_checkpoint
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

RECIPE = find_recipe()
SPENT = Spent(0.0, 0.0, "1")
REQUEST = RenderRequest(
    prompt="a red ball",
    negative_prompt="",
    width=64,
    height=64,
    num_frames=5,
    fps=8.0,
    seed=7,
    num_inference_steps=4,
    guidance_scale=4.0,
)


class Finished:
    """A session that is done, and its own latents."""

    step = 4

    def __enter__(self) -> Finished:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def snapshot(self) -> bytes:
        return b"snapshot"

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
            latents, wrong = worker.finish(key, saves, SPENT)
            assert latents == b"latents"
            assert ("the store didn't answer" in wrong) == hangs
            assert (saves.load(key.clip_id, print) is None) == hangs
    finally:
        answers.set()


def test_a_save_that_is_not_begun_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, save = threading.Event(), Checkpoints.save

    def wait(saves: Checkpoints, *what: Any, **how: Any) -> Any:
        answers.wait()
        return save(saves, *what, **how)

    monkeypatch.setattr(Checkpoints, "save", wait)
    worker = RankWorker(RECIPE.model, RECIPE.gangs[0], 0)
    saves = Checkpoints(ObjectStore(tmp_path), "f" * 64)
    sessions: Any = worker._sessions
    key = ClipKey(saves.store.uri, digest("a clip"))
    sessions[key] = Finished()
    try:
        assert worker.save(key, saves, SPENT) == ""
        assert worker.save(key, saves, SPENT) is None
    finally:
        answers.set()
    assert worker.save(key, saves, SPENT, wait=True) == ""
    assert saves.load(key.clip_id, print) is not None


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


@pytest.fixture(scope="module")
def loaded(one_thread: None) -> tuple[Denoiser, bytes]:
    """A rank's weights, and a clip's conditioning."""
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    return Denoiser(graph), Encoder(graph).encode(REQUEST).to_bytes()


@pytest.mark.parametrize("end", ["finished", "dropped", "raised", "passed over"])
def test_a_clip_leaves_nothing_in_a_ranks_memory(
    loaded: tuple[Denoiser, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Nor waits what it held for Python's collector of cycles."""
    worker = RankWorker(RECIPE.model, RECIPE.gangs[0], 0)
    worker._denoiser, conditioning = loaded
    transformer: Any = worker._denoiser.stage.transformers()[0]
    saves = Checkpoints(ObjectStore(tmp_path), "f" * 64)
    key = ClipKey(saves.store.uri, digest("a clip"))
    others = REQUEST.model_copy(update={"seed": 8})
    with worker._denoiser.start(others, Conditioning.from_bytes(conditioning)) as session:
        foreign = session.snapshot()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    def make() -> None:
        started = worker.start(
            key, REQUEST, conditioning, foreign if end == "passed over" else None
        )
        assert bool(started.passed_over) == (end == "passed over")
        worker.advance(key, 2)
        if end == "raised":
            hook = transformer.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                worker.advance(key, 2)
            hook.remove()
        if end == "finished":
            assert worker.advance(key, 2).done
            worker.finish(key, saves, SPENT)
        else:
            worker.drop(key)

    make()  # what the model keeps of a clip's size is there from now on
    gc.collect()
    before = count_held()
    gc.disable()
    try:
        make()
        assert count_held() == before
    finally:
        gc.enable()


def test_a_session_that_is_passed_over_is_gone_before_the_next_begins(
    loaded: tuple[Denoiser, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = RankWorker(RECIPE.model, RECIPE.gangs[0], 0)
    worker._denoiser, conditioning = loaded
    start, held, key = worker._denoiser.start, list[int](), ClipKey("memory://out", "a clip")
    with start(REQUEST, Conditioning.from_bytes(conditioning)) as session:
        others = pack({**unpack(session.snapshot()), "shapes": {}})

    def note(*given: Any) -> DenoiseSession:
        held.append(count_held()[0])
        return start(*given)

    monkeypatch.setattr(worker._denoiser, "start", note)
    gc.collect()
    gc.disable()
    try:
        assert "another model" in worker.start(key, REQUEST, conditioning, others).passed_over
    finally:
        gc.enable()
        worker.drop(key)
    first, second = held
    assert first == second


def count_held() -> tuple[int, int]:
    """Return how many sessions there are, and how many bytes tensors have."""
    objects = gc.get_objects()
    sessions = sum(type(each) is DenoiseSession for each in objects)
    tensors = [each for each in objects if issubclass(type(each), torch.Tensor)]
    storages = [each.untyped_storage() for each in tensors]
    held = {each.data_ptr(): each.nbytes() for each in storages if each.data_ptr()}
    return sessions, sum(held.values())
