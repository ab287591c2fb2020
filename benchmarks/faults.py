"""A call of the command, and what may strike it: a process killed or stopped, a node lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.checkpoints import FOLDER as CHECKPOINTS
from tests.support.command import end_process, find_children, is_alive
from tests.support.nodes import Nodes

EVERY_S = 0.5
CALL_TIMEOUT_S = 600.0
OVERRIDES = (
    f"checkpoint.every_s={EVERY_S}",
    "lease.limit_s=6",
    "pool.max_attempts=8",
    "pool.tenant_limit_s=12",
    "pool.step_timeout_min_s=8",
)
_DRIVE = """
import json, sys
import jobs.run
from jobs.recipes import find_recipe
from jobs.render import render_tables
from jobs.run import RunBrokenError
from jobs.stop import stop_signals

class Counting:
    def __init__(self): self.before = self.last = 0
    def planned(self, *_): pass
    def ended(self, _): pass
    def noted(self, text): print("note:", text, flush=True)
    def stepped(self, steps, *_):
        if steps < self.last: self.before += self.last  # a pool that was started anew
        self.last = steps
        print(json.dumps({"steps": self.before + steps}), flush=True)

jobs.run.POLL_S = 0.1
table, output, address, *overrides = sys.argv[1:]
try:
    recipe = find_recipe(overrides=overrides)
    with stop_signals():
        result = render_tables([table], output, recipe, Counting(), address=address or None)
except RunBrokenError as error:
    print("broken:", error, flush=True)
    sys.exit(1)
status = result.status
unfinished = status.failed + status.remaining
sys.exit(75 if result.ended_by else 3 if unfinished else 0)
"""


class Call:
    """One call of the command, in a process group of its own, and the Ray that it runs on."""

    def __init__(self, table: Path, output: Path, nodes: Nodes | None = None) -> None:
        """Start it: on these nodes, or on a local Ray that ends with it."""
        self.nodes = nodes
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for as long as the call
        address = nodes.address if nodes else ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DRIVE, str(table), str(output), address, *OVERRIDES],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._seen: dict[int, psutil.Process] = {}

    def is_alive(self) -> bool:
        """Return whether it goes on."""
        return self.process.poll() is None

    def look(self) -> list[psutil.Process]:
        """Return the processes of the call and its nodes; those of a dead one's are remembered."""
        for each in (*find_children(self.process.pid), *self._find_cluster()):
            self._seen.setdefault(each.pid, each)
        return [each for each in self._seen.values() if is_alive(each)]

    def find(self, name: str) -> list[psutil.Process]:
        """Return those of them whose command line begins or ends with `name`."""
        return [each for each in self.look() if matches(each, name)]

    def end(self) -> tuple[int, str]:
        """Wait for its end, and end what it has left; return its exit code and what it said."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(CALL_TIMEOUT_S)
        of_nodes = {each.pid for each in self._find_cluster()}
        for each in self.look():
            if each.pid not in of_nodes:
                end_process(each)
        with suppress(ProcessLookupError):
            self.process.kill()
        code = self.process.wait()
        self.log.seek(0)
        return code, self.log.read()

    def _find_cluster(self) -> list[psutil.Process]:
        return find_children(self.nodes.process.pid) if self.nodes else []


def matches(process: psutil.Process, name: str) -> bool:
    """Return whether a process calls itself by `name`, or runs a program of that name."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return bool(line) and (line[0].startswith(name) or line[0].endswith(f"/{name}"))


def kill_one(call: Call, dice: random.Random, name: str, number: int = signal.SIGKILL) -> bool:
    """Send a signal to one process of a name; return whether there was one."""
    found = call.find(name)
    if not found:
        return False
    with suppress(psutil.Error):
        dice.choice(found).send_signal(number)
        return True
    return False


Fault = Callable[[Call, Path, random.Random], bool]
"""Strikes, if it can: a call, by its output, at random; returns whether it did."""


def strike_driver(number: int) -> Fault:
    """Return a fault that sends a signal to the driver."""

    def strike(call: Call, output: Path, dice: random.Random) -> bool:
        call.look()
        call.process.send_signal(number)
        return True

    return strike


def strike_name(name: str, number: int = signal.SIGKILL) -> Fault:
    """Return a fault that sends a signal to one process of a name."""
    return lambda call, output, dice: kill_one(call, dice, name, number)


def damage_checkpoint(call: Call, output: Path, dice: random.Random) -> bool:
    """Flip a byte of a saved state and kill the ranks, so that it is asked for."""
    saved = sorted((output / CHECKPOINTS).rglob("*.safetensors"))
    if not saved:
        return False
    path = dice.choice(saved)
    with suppress(FileNotFoundError):
        content = bytearray(path.read_bytes())
        content[dice.randrange(len(content))] ^= 0xFF
        path.write_bytes(content)
    for each in call.find("ray::RankWorker"):
        with suppress(psutil.Error):
            each.kill()
    return True


def pause_driver(call: Call, output: Path, dice: random.Random) -> bool:
    """Stop the driver for longer than its lease lasts; nobody takes over, so it goes on."""
    call.process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    call.process.send_signal(signal.SIGCONT)
    return True


def kill_node(call: Call, output: Path, dice: random.Random) -> bool:
    """Kill a worker node's raylet; another node joins in its place."""
    assert call.nodes
    node = dice.choice(list(call.nodes.raylets))
    os.kill(call.nodes.raylets.pop(node), signal.SIGKILL)
    call.nodes.add()
    return True


def drain_node(call: Call, output: Path, dice: random.Random) -> bool:
    """Have another worker node join, and one be drained, as a spot market does."""
    assert call.nodes
    node = dice.choice(list(call.nodes.raylets))
    call.nodes.add()
    call.nodes.drain(node)
    del call.nodes.raylets[node]
    return True


def kill_head(call: Call, output: Path, dice: random.Random) -> bool:
    """Kill the head node's raylet, and with it the driver's and the pool's Ray."""
    assert call.nodes
    os.kill(call.nodes.head, signal.SIGKILL)
    return True


FAULTS: dict[str, Fault] = {
    "driver killed": strike_driver(signal.SIGKILL),
    "driver terminated": strike_driver(signal.SIGTERM),
    "driver interrupted": strike_driver(signal.SIGINT),
    "driver paused": pause_driver,
    "rank killed": strike_name("ray::RankWorker"),
    "rank hung": strike_name("ray::RankWorker", signal.SIGSTOP),
    "pool killed": strike_name("ray::GangPool"),
    "encode killed": strike_name("ray::MapWorker(Map(_Encode"),
    "client killed": strike_name("ray::MapWorker(Map(_Denoise"),
    "publish killed": strike_name("ray::MapWorker(Map(_Publish"),
    "raylet killed": strike_name("raylet"),
    "checkpoint damaged": damage_checkpoint,
}
NODE_FAULTS: dict[str, Fault] = {
    **{name: fault for name, fault in FAULTS.items() if name != "raylet killed"},
    "node killed": kill_node,
    "node drained": drain_node,
    "head killed": kill_head,
}
"""What may strike a run on a cluster of several nodes."""
