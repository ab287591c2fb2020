"""A cluster of several nodes loses one with notice and one without: the run goes on."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest

from jobs.cli import ExitCode
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import start_rushes, wait_until, write_table
from tests.support.nodes import start_nodes

pytestmark = pytest.mark.timeout(600)

NUM_CLIPS, STEPS = 5, 90
RANK_CPUS = 4
HEAD_CPUS = RANK_CPUS - 1
"""Room for every actor but a rank; the other nodes have room for one rank, and for others."""
RUN_S = 300.0


def find_rank_of(raylet: int) -> psutil.Process | None:
    """Return the rank at work that a raylet has started."""
    for child in psutil.Process(raylet).children(recursive=True):
        try:
            if child.cmdline()[0] == "ray::RankWorker.advance":
                return child
        except (psutil.Error, IndexError):
            continue
    return None


def count_commits(output: Path) -> int:
    return len(list((output / "commits").glob("*/*.json")))


def test_a_node_that_is_drained_and_one_that_dies(tmp_path: Path) -> None:
    prompts = [f"a red ball moving left, take {number}" for number in range(NUM_CLIPS)]
    write_table(tmp_path / "ads.parquet", prompt=prompts)
    call = ("render", "ads.parquet", "-o", "out", f"--set=request.num_inference_steps={STEPS}",
            f"--set=gangs.0.num_cpus={RANK_CPUS}")  # fmt: skip
    with start_nodes(HEAD_CPUS, RANK_CPUS + 1, workers=3) as nodes:

        def find_busy() -> list[str]:
            assert run.poll() is None, run.communicate()
            return [node for node in nodes.workers if find_rank_of(nodes.raylets[node])]

        def has_committed(number: int) -> bool:
            assert run.poll() is None, run.communicate()
            return count_commits(tmp_path / "out") >= number

        with start_rushes(*call, "--address", nodes.address, cwd=tmp_path) as run:
            wait_until(lambda: has_committed(1) and len(find_busy()) == 2, RUN_S, "two ranks")
            drained, spare = find_busy()[0], (set(nodes.workers) - set(find_busy())).pop()
            nodes.drain(drained)
            wait_until(lambda: spare in find_busy(), RUN_S, "a rank on the node that was spare")
            wait_until(partial(has_committed, 2), RUN_S, "another commit")
            dying = next(each for each in nodes.workers if each not in (drained, spare))
            wait_until(lambda: dying in find_busy(), RUN_S, "a rank at work on the node that dies")
            os.kill(nodes.raylets[dying], signal.SIGKILL)
            stdout, stderr = run.communicate(timeout=RUN_S)
        assert run.returncode == ExitCode.OK, (stdout, stderr)
    assert stdout.count("leaves its node") == 1
    assert stdout.count("gang lost") == 1
    commits = list(Ledger(ObjectStore(tmp_path / "out")).read_commits())
    assert sorted(each.attempts for each in commits) == [1] * (NUM_CLIPS - 1) + [2]
