"""Several processes of one thread each that train one model: gradients are averaged.

On a busy machine this beats threads by far: threads wait for each other at every operation,
processes once a step.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.tiny.optim import calm_malloc


def _worker(rank: int, world: int, port: int, job: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    calm_malloc()
    if world > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    job()
    if world > 1:
        dist.destroy_process_group()


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def run_together(processes: int, job: Callable[[], None]) -> None:
    """Run a picklable `job` in so many processes; an error in one ends all."""
    if processes == 1:
        calm_malloc()
        job()
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, args=(processes, port, job), nprocs=processes)
