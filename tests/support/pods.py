"""Pods as a kubelet runs them, on this machine: each with its own network, processes and mounts.

To be used inside `unshare --net --mount --pid --fork --kill-child --mount-proc`: as that ends, all
of it is gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.manifests import quantity

BRIDGE = "10.231.0.1"
"""Where this side listens for pods."""
_MOUNT = """
mount --bind "$1" /etc
mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
mount -t tmpfs none /dev/shm
ip link set lo up
shift; exec "$@"
"""


def make_network() -> None:
    """Make the bridge that pods are on."""
    for call in (
        ["link", "set", "lo", "up"],
        ["link", "add", "pods", "type", "bridge"],
        ["address", "add", f"{BRIDGE}/24", "dev", "pods"],
        ["link", "set", "pods", "up"],
    ):
        _ip(*call)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)  # for `ip netns`


@dataclass(frozen=True)
class RunningPod:
    """A pod whose one container runs."""

    name: str
    address: str
    container: dict[str, Any]
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    pid: int
    """Of its first process, as seen from here."""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `kubectl exec` does."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount", "--"]
        return subprocess.run(
            [*enter, *command], env=self.environment, capture_output=True, text=True, check=False
        )

    def find(self, name: str) -> bool:
        """Return whether a process of that name runs in it."""
        return self.run("pgrep", "--full", name).returncode == 0

    def delete(self, grace_s: float) -> float:
        """End it as a kubelet does: the hook, SIGTERM, and SIGKILL after its grace.

        Returns the seconds that it took.
        """
        began = time.monotonic()
        hook = self.container["lifecycle"]["preStop"]["exec"]["command"]
        self.run(*hook)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        try:
            self.process.wait(max(0.0, grace_s - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            self.process.kill()
        return time.monotonic() - began


def remove_pod(pod: RunningPod) -> None:
    """Remove what is left of a pod that has ended."""
    pod.process.wait()
    _ip("netns", "delete", pod.name)


def start_pod(
    name: str,
    address: str,
    container: dict[str, Any],
    command: str,
    files: dict[str, str],
    environment: dict[str, str],
    folder: Path,
) -> RunningPod:
    """Start a pod that runs `command` by bash, as KubeRay has Ray's containers do.

    `files` are what its volumes put below /etc, by path.
    """
    _ip("netns", "add", name)
    _ip("link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", f"v-{name}", "master", "pods", "up")
    _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", name, "route", "add", "default", "via", BRIDGE)  # Ray finds its own address by it
    etc = folder / name / "etc"
    if not etc.exists():
        shutil.copytree("/etc", etc, symlinks=True, ignore_dangling_symlinks=True)
    for path, text in files.items():
        (etc / path).parent.mkdir(parents=True, exist_ok=True)
        (etc / path).write_text(text, "utf-8")
    given = {each["name"]: each["value"] for each in container.get("env", ())}
    everything = {**os.environ, **environment, **given}
    isolated = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        ["ip", "netns", "exec", name, *isolated, "bash", "-c", _MOUNT, "pod", etc,
         "bash", "-c", "--", f"ulimit -n 65536; {command}"],
        env=everything,
        stdout=(folder / name / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    return RunningPod(name, address, container, process, everything, _find_child(process.pid))


def make_ray_start(
    params: dict[str, str], container: dict[str, Any], head: str | None = None
) -> str:
    """Return the `ray start` that KubeRay makes of a group: of the head, or to join `head`."""
    limits = container["resources"]["limits"]
    given = {
        "num-cpus": str(int(quantity(limits["cpu"]))),
        "memory": str(int(quantity(limits["memory"]))),
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
        **({"address": f"{head}:6379"} if head else {"port": "6379"}),
        **params,
    }
    words = " ".join(f"--{name}={value}" for name, value in given.items())
    return f"ray start {'' if head else '--head '}{words} --block"


def _find_child(pid: int) -> int:
    """Return the one child of a process, once it has one."""
    while True:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
