"""A Ray cluster of several nodes on this machine, in a process of its own that a test commands.

`python -m tests.support.nodes HEAD_CPUS WORKER_CPUS WORKERS` prints one line of JSON: the address,
the process id of the head node's raylet, and each worker node's, by its id. For every line that it
reads it adds a worker node, if the line is `add`, or else drains the node of that id. It ends with
its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from tests.support.command import ROOT, end_process, find_children, is_alive, make_environment

DRAIN_S = 600


@dataclass(frozen=True)
class Nodes:
    """A cluster that runs."""

    address: str
    head: int
    """The process id of the head node's raylet."""
    raylets: dict[str, int]
    """Those of each worker node, by its id."""
    process: subprocess.Popen[str]

    def has_head(self) -> bool:
        """Return whether the head node lives."""
        try:
            return is_alive(psutil.Process(self.head))
        except psutil.NoSuchProcess:
            return False

    def add(self) -> str:
        """Add a worker node; return its id."""
        (added,) = json.loads(self._ask("add")).items()
        self.raylets.update([added])
        return added[0]

    def drain(self, node: str) -> None:
        """Tell Ray that a node is about to end, as Kubernetes or an autoscaler does."""
        assert self._ask(node) == "drained\n"

    def kill(self, node: str) -> None:
        """End a worker node at once, with all its processes: a rank outlives its raylet a while."""
        raylet = psutil.Process(self.raylets[node])
        for process in (raylet, *raylet.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _ask(self, line: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


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
        yield Nodes(started["address"], started["head"], started["raylets"], process)
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

    def find_raylet(node: Any) -> int:
        return node.all_processes["raylet"][0].process.pid

    def add() -> tuple[str, int]:
        node = cluster.add_node(num_cpus=worker_cpus)
        return node.node_id, find_raylet(node)

    head, raylets = find_raylet(cluster.head_node), dict(add() for _ in range(workers))
    print(json.dumps({"address": cluster.address, "head": head, "raylets": raylets}), flush=True)
    client = GcsClient(address=cluster.address)
    for line in sys.stdin:
        if line == "add\n":
            print(json.dumps(dict([add()])), flush=True)
            continue
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
