"""A gang whose two ranks are on hosts of their own, of which one dies in the middle of a clip.

`python -m tests.fault.gang_over_hosts FOLDER`, as root in namespaces of its own (see
`tests.support.pods`): every host has its own address and processes, and no other way to the rest
than the network. Ends as the run does, whose output is FOLDER/run.log.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.support.command import ROOT, wait_until, write_table
from tests.support.pods import RunningPod, make_network, make_ray_start, start_pod

NUM_CLIPS, STEPS = 3, 24
HEAD, HOSTS = "10.231.0.2", ("10.231.0.3", "10.231.0.4", "10.231.0.5")
RANK_CPUS = 3
CONTAINER = {"resources": {"limits": {"cpu": str(2 * RANK_CPUS - 1), "memory": "4Gi"}}}
"""Room for one rank on each host, and for some of the other actors."""
HEAD_CONTAINER = {"resources": {"limits": {"cpu": str(RANK_CPUS - 1), "memory": "4Gi"}}}
"""No room for a rank: the gang can only be on the hosts."""
GANG = f"{{name='pair', tensor=2, placement='PACK', num_cpus={RANK_CPUS}}}"
RANK = "ray::RankWorker.advance"
START_S, RUN_S = 120.0, 300.0


def main() -> None:
    folder = Path(sys.argv[1])
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]  # of a local cluster that whoever called this has started
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="0123456789abcdef" * 4,
        RAY_health_check_period_ms="1000",  # a dead host is found in 5 s, not in 20
        PYTHONPATH=str(ROOT),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    make_network()
    head = start_host("head", HEAD, None, folder)
    wait_until(lambda: head.run("ray", "status").returncode == 0, START_S, "the head up")
    hosts = [start_host(f"host-{n}", HOSTS[n], HEAD, folder) for n in range(2)]
    prompts = [f"a red ball moving left, take {number}" for number in range(NUM_CLIPS)]
    table = write_table(folder / "ads.parquet", prompt=prompts)
    run = start_run(head, table, folder)
    wait_until(partial(is_on_both, hosts, folder), RUN_S, "a rank on each host, a clip committed")
    kill(hosts[1])
    start_host("host-2", HOSTS[2], HEAD, folder)
    sys.exit(run.wait(RUN_S))


def start_host(name: str, address: str, head: str | None, folder: Path) -> RunningPod:
    container = CONTAINER if head else HEAD_CONTAINER
    command = make_ray_start({} if head else {"include-dashboard": "false"}, container, head)
    return start_pod(name, address, container, command, {}, {}, folder)


def start_run(head: RunningPod, table: str, folder: Path) -> subprocess.Popen[bytes]:
    """Call the command on the head, as somebody who is logged in there."""
    call = ["rushes", "render", table, "--output", str(folder / "out"), "--address", "auto",
            f"--set=gangs=[{GANG}]", f"--set=request.num_inference_steps={STEPS}"]  # fmt: skip
    enter = ["nsenter", "--target", str(head.pid), "--net", "--pid", "--mount", "--"]
    return subprocess.Popen(
        [*enter, *call],
        env=head.environment,
        stdout=(folder / "run.log").open("wb"),
        stderr=subprocess.STDOUT,
    )


def is_on_both(hosts: list[RunningPod], folder: Path) -> bool:
    """Return whether each host has a rank at work, and a clip is committed."""
    is_committed = any((folder / "out" / "commits").glob("*/*.json"))
    return is_committed and all(each.find(RANK) for each in hosts)


def kill(host: RunningPod) -> None:
    """End a host with all that runs on it, as a power cut does."""
    os.kill(host.pid, signal.SIGKILL)
    host.process.wait()


if __name__ == "__main__":
    main()
