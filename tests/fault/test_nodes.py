"""A cluster has no node yet, or loses one, with notice and without: the run waits, and goes on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from jobs.cli import ExitCode
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import QUICK, find_named, start_rushes, wait_until, write_table
from tests.support.nodes import start_nodes

pytestmark = pytest.mark.timeout(600)

NUM_CLIPS, STEPS = 7, 60
RANK_CPUS = 4
WORKER_CPUS = 2 * RANK_CPUS - 1
"""Room for one rank and, as the head node has none, for the other actors."""
GANGS = 4
"""Two more than there is room for: they wait for nodes."""
ASKED_CPUS = GANGS * RANK_CPUS + 2
"""Of ranks; one is for encode and develop, and one for reading the table."""
RUN_S = 300.0
RANK = "ray::RankWorker.advance"
PUBLISHER = "ray::MapWorker(Map(_Publish"


def count_commits(output: Path) -> int:
    return len(list((output / "commits").glob("*/*.json")))


def test_a_node_that_is_drained_and_one_that_dies(tmp_path: Path) -> None:
    prompts = [f"a red ball moving left, take {number}" for number in range(NUM_CLIPS)]
    write_table(tmp_path / "ads.parquet", prompt=prompts)
    call = ("render", "ads.parquet", "-o", "out", f"--set=request.num_inference_steps={STEPS}",
            f"--set=gangs.0.num_cpus={RANK_CPUS}", f"--set=gangs.0.count={GANGS}")  # fmt: skip
    with start_nodes(0, WORKER_CPUS, workers=2) as nodes:

        def find(name: str) -> list[str]:
            """Return the nodes on which there is a process of that name."""
            assert run.poll() is None, run.communicate()
            return [node for node, raylet in nodes.raylets.items() if find_named(raylet, name)]

        def has_committed(number: int) -> bool:
            assert run.poll() is None, run.communicate()
            return count_commits(tmp_path / "out") >= number

        with start_rushes(*call, "--address", nodes.address, cwd=tmp_path) as run:
            wait_until(lambda: has_committed(1) and len(find(RANK)) == 2, RUN_S, "two ranks")
            (drained,) = find(PUBLISHER)
            spare = nodes.add()
            nodes.drain(drained)
            wait_until(lambda: spare in find(RANK), RUN_S, "a rank on the new node")
            wait_until(lambda: drained not in find(PUBLISHER), RUN_S, "the publisher elsewhere")
            wait_until(partial(has_committed, 2), RUN_S, "another commit")
            (dying,) = nodes.raylets.keys() - {drained, spare}
            wait_until(lambda: dying in find(RANK), RUN_S, "a rank at work on the node that dies")
            nodes.kill(dying)
            stdout, stderr = run.communicate(timeout=RUN_S)
        assert run.returncode == ExitCode.OK, (stdout, stderr)
    assert f"the cluster has {2 * WORKER_CPUS} of {ASKED_CPUS} CPUs" in stdout
    assert stdout.count("leaves its node") == 1
    assert stdout.count("gang lost") == 1
    commits = list(Ledger(ObjectStore(tmp_path / "out")).read_commits())
    assert sorted(each.attempts for each in commits) == [1] * (NUM_CLIPS - 1) + [2], stdout


def test_a_run_that_finds_no_worker_asks_for_some_and_waits(tmp_path: Path) -> None:
    from ray.autoscaler.v2.sdk import get_cluster_status

    write_table(tmp_path / "ads.parquet", prompt=["a red ball moving left"])
    call = ("render", "ads.parquet", "-o", "out", *QUICK)
    with start_nodes(0, WORKER_CPUS, workers=0) as nodes:

        def has_asked() -> bool:
            """Return whether an autoscaler would hear of what tasks, actors and gangs wait for."""
            assert run.poll() is None, run.communicate()
            asked = get_cluster_status(nodes.address).resource_demands
            return bool(asked.ray_task_actor_demand and asked.placement_group_demand)

        with start_rushes(*call, "--address", nodes.address, cwd=tmp_path) as run:
            wait_until(has_asked, RUN_S, "demands")
            nodes.add()
            stdout, stderr = run.communicate(timeout=RUN_S)
        assert run.returncode == ExitCode.OK, (stdout, stderr)
    (commit,) = Ledger(ObjectStore(tmp_path / "out")).read_commits()
    assert commit.attempts == 1
