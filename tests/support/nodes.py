"""A Ray cluster of several nodes on this machine, in a process of its own that a test commands.

`python -m tests.support.nodes HEAD_CPUS WORKER_CPUS WORKERS` prints one line of JSON: the address,
and of each worker node its id and its raylet's process id. Then it drains the node whose id it
reads, line by line, and ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.command import ROOT, end_process, find_children, make_environment

DRAIN_S = 600


@dataclass(frozen=True)
class Nodes:
    """A cluster that runs."""

    address: str
    workers: tuple[str, ...]
    raylets: dict[str, int]
    process: subprocess.Popen[str]

    def drain(self, node: str) -> None:
        """Tell Ray that a node is about to end, as Kubernetes or an autoscaler does."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{node}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "drained\n"


@contextmanager
def start_nodes(head_cpus: int, worker_cpus: int, workers: int) -> Iterator[Nodes]:
    """Run a cluster of a head and some workers."""
    sizes = map(str, (head_cpus, worker_cpus, workers))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.nodes", *sizes],
        cwd=ROOT,
        env=make_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        started = json.loads(process.stdout.readline())
        raylets = started["raylets"]
        yield Nodes(started["address"], tuple(raylets), raylets, process)
    finally:
        left = find_children(process.pid)
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for each in left:
            end_process(each)


def main() -> None:
    """Run the cluster until the input ends."""
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2

    head_cpus, worker_cpus, workers = map(int, sys.argv[1:])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": head_cpus, "include_dashboard": False},
    )
    nodes = [cluster.add_node(num_cpus=worker_cpus) for _ in range(workers)]
    raylets = {node.node_id: node.all_processes["raylet"][0].process.pid for node in nodes}
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    client = GcsClient(address=cluster.address)
    for line in sys.stdin:
        accepted, why = client.drain_node(
            line.strip(),
            autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            "a test",
            int((time.time() + DRAIN_S) * 1000),
        )
        print("drained" if accepted else why, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
