"""`RankWorker`: one device's share of the denoise stage, in a process of its own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import psutil
import ray

from cluster import metrics
from cluster.answers import ClipKey, Spent
from cluster.niceness import step_back
from pipeline.checkpoints import Checkpoints
from pipeline.imports import quick_imports
from pipeline.model import resolve_checkpoint
from pipeline.recipe import GangShape, ModelSpec
from pipeline.request import RenderRequest

if TYPE_CHECKING:
    from pipeline.denoise import DenoiseSession
    from pipeline.parallel.place import Place


SAVE_S = 120.0
"""For a save; one that takes longer goes on by itself, and the clip without it.

A store that doesn't answer keeps s3fs for minutes.
"""


@dataclass(frozen=True)
class Progress:
    """How far a session is, and how long the last call worked on it."""

    step: int
    num_steps: int
    seconds: float
    passed_over: str = ""
    """Why the session didn't begin where the snapshot that it was given left off."""

    @property
    def done(self) -> bool:
        """Whether the latents are ready."""
        return self.step >= self.num_steps


class RankWorker:
    """Holds the denoise stage's weights and the sessions that run on them.

    An actor with one thread: Ray calls its methods one after another, and a session is always
    advanced by the thread that started it. A gang's ranks get the same calls in the same order.
    """

    def __init__(self, model: ModelSpec, shape: GangShape, rank: int) -> None:
        """Hold what `load` needs."""
        self._model = model
        self._shape = shape
        self._rank = rank
        self._saver = ThreadPoolExecutor(1, "saver")
        self._saving: tuple[ClipKey, Future[Any]] | None = None  # a clip, and its save
        self._store: Any = None
        self._place: Place | None = None  # of several ranks
        self._sessions: dict[ClipKey, DenoiseSession] = {}

    def host(self, timeout_s: float) -> tuple[str, int]:
        """Open the gang's meeting place, at a port that is free; return its address. Rank 0's."""
        import torch.distributed as dist

        ip = cast(str, cast(Any, ray.util).get_node_ip_address())
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        listening = socket.create_server((ip, 0), family=family)
        port = cast(int, listening.getsockname()[1])
        self._store = cast(Any, dist).TCPStore(
            ip,
            port,
            is_master=True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        return ip, port

    def join(self, address: tuple[str, int], timeout_s: float) -> None:
        """Meet the gang's other ranks: NCCL where they have GPUs, gloo where they have none."""
        import torch.distributed as dist

        timeout = timedelta(seconds=timeout_s)
        store = self._store or cast(Any, dist).TCPStore(*address, is_master=False, timeout=timeout)
        if self._shape.num_gpus:
            import torch

            torch.cuda.set_device(0)  # the one that Ray lets it see
        _talk_by_ray_network()
        # Without `device_id`, which would connect every axis of the mesh, those of one rank too:
        # `Place.check` connects those that are used. Ranks tell each other sizes by gloo, which
        # keeps no GPU waiting; diffusers looks for "cpu" in the name, and without it for any GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self._shape.num_gpus else "cpu:gloo",
            store=store,
            rank=self._rank,
            world_size=self._shape.layout.ranks,
            timeout=timeout,
        )

    def load(self) -> None:
        """Load the weights, or this rank's share, onto the device that Ray assigned to it.

        Raises:
            UsageError: the checkpoint can't be loaded, here or anywhere.
        """
        with quick_imports():  # here: the pool, which starts ranks by this class, needs no torch
            import torch

            from pipeline.denoise import Denoiser
            from pipeline.graph import Graph
            from pipeline.parallel.place import Place

        torch.set_num_threads(self._shape.threads)
        graph = Graph(self._model, resolve_checkpoint(self._model))
        layout, device = self._shape.layout, self._shape.device
        self._place = Place.find(layout, device) if layout.ranks > 1 else None
        self._denoiser = Denoiser(graph, device, self._place)
        self.check()
        if device == "cpu":
            step_back()

    def ping(self) -> None:
        """Answer: this process lives."""

    def check(self) -> str:
        """Return the device's name after using it and, in a gang, reaching the other ranks.

        Raises:
            RuntimeError: the device, or a connection, is broken.
        """
        import torch

        probe = torch.ones(2, device=self._denoiser.device).sum().item()
        if probe != 2:
            raise RuntimeError(f"{self._denoiser.device}: 1 + 1 gave {probe}")
        if self._place:
            self._place.check(self._denoiser.device)
        return str(torch.device(self._denoiser.device))

    def start(
        self, key: ClipKey, request: RenderRequest, conditioning: bytes, snapshot: bytes | None
    ) -> Progress:
        """Start a session named `key`, where `snapshot` left off if it is of this model."""
        from pipeline.handoff import Conditioning

        began = time.perf_counter()
        data = Conditioning.from_bytes(conditioning, self._denoiser.device)
        session, passed_over = None, ""
        if snapshot is not None:
            try:
                session = self._denoiser.start(request, data, snapshot)
            except ValueError as error:
                passed_over = str(error)
        if session is None:  # not in the handler, whose error holds the tensors of the first
            session = self._denoiser.start(request, data)
        self._sessions[key] = session
        seconds = time.perf_counter() - began
        return Progress(session.step, session.num_steps, seconds, passed_over)

    def advance(self, key: ClipKey, max_steps: int) -> Progress:
        """Make up to `max_steps` steps of a session."""
        began = time.perf_counter()
        session = self._sessions[key]
        session.advance(max_steps)
        self._denoiser.wait()
        return Progress(session.step, session.num_steps, time.perf_counter() - began)

    def save(
        self,
        key: ClipKey,
        checkpoints: Checkpoints,
        spent: Spent,
        wait: bool = False,
    ) -> str | None:
        """Write a session's snapshot to its output; without `wait` in the background, if none is.

        Called on rank 0 alone: between two steps every rank holds the whole state. Returns what
        went wrong with the last save that has ended, if anything; None where one is under way
        still, and this one was not begun.
        """
        if self._saving and not self._saving[1].done() and not wait:
            return None
        wrong = self._settle_save()
        session = self._sessions[key]
        save = partial(checkpoints.save, **spent._asdict())
        self._begin_save(save, key, "snapshot", session.step, session.snapshot())
        return (self._settle_save() if wait else "") or wrong

    def finish(self, key: ClipKey, checkpoints: Checkpoints, spent: Spent) -> tuple[bytes, str]:
        """Return a finished session's latents, packed and saved, and forget the session.

        With them, what went wrong with saving, if anything: the clip needs no saving to go on.
        """
        with self._sessions.pop(key) as session:
            step, latents = session.step, session.latents().to_bytes()
        wrong = self._settle_save()
        save = partial(checkpoints.save, **spent._asdict())
        self._begin_save(save, key, "latents", step, latents)
        return latents, self._settle_save() or wrong

    def _begin_save(
        self,
        save: Callable[..., Any],
        key: ClipKey,
        kind: Literal["snapshot", "latents"],
        step: int,
        payload: bytes,
    ) -> None:
        save = partial(save, key.clip_id, kind, step, payload)
        self._saving = key, self._saver.submit(save)
        metrics.CHECKPOINT_BYTES.inc(len(payload), {"kind": kind})

    def _settle_save(self) -> str:
        """Wait for the save that is under way, if any; return whose failed and why, if it has."""
        if self._saving is None:
            return ""
        (key, saving), self._saving = self._saving, None
        try:
            error = saving.exception(SAVE_S)
            why = f"{type(error).__name__}: {error}"
        except TimeoutError as late:
            self._saver = ThreadPoolExecutor(1, "saver")  # for the next: the first is at work
            error, why = late, f"the store didn't answer within {SAVE_S:.0f} s"
        return f"clip {key.clip_id[:16]} could not be saved: {why}" if error else ""

    def settle(self) -> None:
        """Wait for the save that is under way, if any: then nothing more comes of it."""
        self._settle_save()

    def drop(self, key: ClipKey) -> None:
        """Forget a session, finished or not."""
        session = self._sessions.pop(key, None)
        if session:
            session.close()


def _talk_by_ray_network() -> None:
    """Have gloo connect ranks by the network that Ray's nodes have, unless the user names one.

    By itself it takes the address that this host's name stands for: often 127.0.0.1, which is no
    other host's.
    """
    ip = cast(str, cast(Any, ray.util).get_node_ip_address())
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == ip for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
