"""Several ranks on this machine: processes that form one gloo group, as a gang on CPUs does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank: int, world: int, store: str, job: Callable[..., None], args: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    address = f"file://{store}"
    dist.init_process_group("cpu:gloo", init_method=address, rank=rank, world_size=world)
    job(*args)
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(
    world: int, folder: Path, job: Callable[..., None], *args: Any, method: str = "forkserver"
) -> None:
    """Run a picklable `job(*args)` in so many ranks; an error in one fails all.

    With `method` "forkserver" they are forks of a process that has imported what takes seconds and
    done nothing else; with "spawn" each imports for itself.
    """
    mp.get_context("forkserver").set_forkserver_preload(["tests.support.layouts", "pipeline.graph"])
    mp.start_processes(
        _run,
        args=(world, str(folder / f"store-{world}"), job, args),
        nprocs=world,
        start_method=method,
    )


def count_threads(_: object) -> int:
    """Return how many threads torch uses in the process of an actor that is asked for it."""
    return torch.get_num_threads()
