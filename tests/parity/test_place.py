"""The ranks of a gang reach each other by the groups of their layout, or say that they don't."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.rank import RankWorker
from jobs.recipes import find_recipe
from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.lengths import find_lengths
from pipeline.parallel.place import Place
from pipeline.recipe import GangShape
from tests.support.ranks import run_ranks

LIMIT_S = 6.0
MEET_S = 60.0


def count_with_one_missing(out: Path) -> None:
    """One rank's work: the last doesn't come to the second count, as if it hung."""
    rank, world = dist.get_rank(), dist.distributed_c10d._get_default_group()
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=LIMIT_S), world)
    place = Place.find(ParallelLayout(tensor=2, context=2), "cpu")
    place.check("cpu")
    ends = dist.distributed_c10d._get_default_store()
    if rank < 3:
        began = time.monotonic()
        with pytest.raises(RuntimeError):
            place.check("cpu")
        (out / f"{rank}.waited").write_text(f"{time.monotonic() - began}")
        ends.set(f"{rank}", "ended")
    ends.wait(["0", "1", "2"], timedelta(seconds=60))


def test_a_rank_that_is_missing_is_missed_by_the_others_in_time(tmp_path: Path) -> None:
    """Not after torch's own timeout for the groups of a mesh, of half an hour."""
    run_ranks(4, tmp_path, count_with_one_missing, tmp_path)
    waited = [float(each.read_text()) for each in tmp_path.glob("*.waited")]
    assert len(waited) == 3
    assert max(waited) < 60.0


def tell_lengths_beside_an_accelerator(rank: int, addresses: Any) -> None:
    """One rank's work, on a machine with an accelerator that gloo can't send from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
        patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
        shape = GangShape(name="pair", context=2, threads=1)
        worker = RankWorker(find_recipe().model, shape, rank)
        if rank == 0:
            addresses.put(worker.host(MEET_S))
            worker.join(("", 0), MEET_S)  # by the place that it has opened
        else:
            worker.join(addresses.get(), MEET_S)
        context = Place.find(shape.layout, shape.device).context
        assert context
        context._ulysses.ulysses_anything = True  # shares differ
        assert find_lengths(context._ulysses, 5 + rank) == [5, 6]
        dist.destroy_process_group()


def test_ranks_on_cpus_leave_an_accelerator_alone() -> None:
    """That of a Mac, or a GPU that the recipe doesn't ask for."""
    addresses = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(
        tell_lengths_beside_an_accelerator, args=(addresses,), nprocs=2, start_method="spawn"
    )
