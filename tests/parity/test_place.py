"""The ranks of a gang reach each other by the groups of their layout, or say that they don't."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.place import Place
from tests.support.ranks import run_ranks

LIMIT_S = 2.0


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
    assert max(waited) < 30.0
