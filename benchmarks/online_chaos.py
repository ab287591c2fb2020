"""The online endpoint killed in part or whole with requests in flight, round after round.

A round starts `rushes serve` on a fresh output. Callers with three keys ask for videos by the
official client: long and short ones, equal ones, some with an `Idempotency-Key`, some deleted
under way; and for a batch. Meanwhile three of the endpoint's parts (dispatcher, ingress, encode
or publish replica, Serve's controller or proxy, pool, rank) are killed, and once the whole: the
raylet, the GCS, the driver, or every process at once, after which the command is called again. A
call that is not answered is made again. The seed says what is asked for and what is killed when.

Once all is ended, each of these is a violation: a video that was acknowledged and is not completed,
was unknown for a moment, or isn't, byte for byte, the one that an undisturbed process renders; an
`Idempotency-Key` with two videos; a deleted video that is back; a batch without all its lines; an
end that the webhook was not told, or a wrong one; an error that is no 503; a clip without a commit,
or with more files than its commit names; a part that is not started anew.

Prints a row of a Markdown table for each round and one of totals; exits with 1 on any violation.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.faults import matches
from benchmarks.online_callers import Callers
from benchmarks.online_check import Ends, check_answers, check_output, check_told
from benchmarks.online_plan import (
    PARTS,
    WHOLES,
    Phase,
    Undisturbed,
    make_plan,
    render_undisturbed,
)
from jobs.cli import ExitCode
from pipeline.lease import read_lease
from pipeline.store import ObjectStore
from tests.support.command import wait_until
from tests.support.online import Server

FIND_S, LOSS_S, PORT_S, STOP_S = 90.0, 90.0, 30.0, 90.0
HEAD = """\
| round | killed, after s of each phase (in flight) | videos, batches | deleted | \
calls made again | strays | violations | s |
|---|---|---|---|---|---|---|---|"""


@dataclass
class Tally:
    """What a round has brought, or all of them."""

    kills: Counter[str] = field(default_factory=Counter[str])
    struck: list[str] = field(default_factory=list[str])
    """Each kill in words."""
    in_flight: int = 0
    """Calls and videos under way at the kills."""
    videos: int = 0
    batches: int = 0
    deleted: int = 0
    again: Counter[str] = field(default_factory=Counter[str])
    """Why calls were made again."""
    strays: Counter[str] = field(default_factory=Counter[str])
    """Files of attempts that were cut off before their commit."""
    violations: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Count another's in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_row(self, name: str, struck: str) -> str:
        """Return it as a row of a table."""
        cells = (
            name, struck, f"{self.videos}, {self.batches}", self.deleted, self.again.total(),
            self.strays.total(), len(self.violations), f"{self.seconds:.0f}",
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


class Round:
    """A plan as it is carried out on a server that listens."""

    def __init__(self, server: Server, plan: list[Phase], name: str) -> None:
        """Begin nothing yet; `name` is no other round's on this server."""
        self.callers = Callers(server, name)
        self.tally = Tally()
        self._server = server
        self._plan = plan

    def run(self, expected: list[Undisturbed]) -> Ends:
        """Call and kill; wait for the ends and check them by the endpoint's own answers."""
        wrong = self.tally.violations
        start: Callable[[], None] | None = None
        for phase in self._plan:
            self.callers.begin(phase.calls)
            if start:
                start()
            time.sleep(phase.kill_after_s)
            in_flight = self.callers.count_under_way()
            self.tally.struck.append(f"{phase.kill} {phase.kill_after_s:.1f} ({in_flight})")
            self.tally.kills[phase.kill] += 1
            self.tally.in_flight += in_flight
            start = self._strike(phase.kill)
        if start:
            start()
        self.callers.join()
        ends = Ends(self.callers, self._plan)
        wrong.extend(check_answers(ends, self.callers, expected))
        wrong.extend(check_told(ends, self.callers, self._server.listener))
        self.tally.videos, self.tally.batches = len(ends.videos), len(ends.batches)
        self.tally.deleted = len(self.callers.deleted)
        self.tally.again = self.callers.unanswered
        return ends

    def _strike(self, name: str) -> Callable[[], None] | None:
        """Kill something; return how it is started again, where it isn't by itself."""
        server = self._server
        if name == "cluster":
            server.kill()
            return server.start
        if name == "driver":
            server.look()
            server.process.kill()
            return self._start_after_driver
        try:
            found = wait_until(lambda: self._find(PARTS.get(name, name)), FIND_S, name)
        except AssertionError as error:
            self.tally.violations.append(f"{name} is not started anew: {error}")
            return None
        with suppress(psutil.Error):
            found.kill()
        return self._start_after_loss if name in WHOLES else None

    def _find(self, name: str) -> psutil.Process | None:
        return next((each for each in self._server.look() if matches(each, name)), None)

    def _start_after_driver(self) -> None:
        wait_until(self._is_port_free, PORT_S, "the port is free")
        self._server.start()

    def _start_after_loss(self) -> None:
        """Call the command again once it has seen that its cluster is gone."""
        server = self._server
        try:
            code = server.process.wait(LOSS_S)
            if code != ExitCode.BROKEN:
                self.tally.violations.append(f"without a cluster, the command ends with {code}")
        except subprocess.TimeoutExpired:
            self.tally.violations.append("without a cluster, the command goes on")
            server.kill()
        self._start_after_driver()

    def _is_port_free(self) -> bool:
        try:
            socket.create_server(("127.0.0.1", self._server.port)).close()
        except OSError:
            return False
        return True


def stop(server: Server) -> Iterator[str]:
    """End a server as its user does; yield what is wrong about how it ends."""
    os.killpg(server.process.pid, signal.SIGTERM)  # all of its group, as a shell or `timeout`
    _, stderr = server.process.communicate(timeout=STOP_S)
    if server.process.returncode != ExitCode.OK:
        yield f"SIGTERM ends the command with {server.process.returncode}: {stderr[-500:]}"
    held = read_lease(ObjectStore(server.output))
    if not (held and held.released):
        yield f"the lease is not given back: {held}"


def run_round(folder: Path, plan: list[Phase], expected: list[Undisturbed]) -> Tally:
    """Carry a plan out on a server of its own."""
    began = time.monotonic()
    server = Server(folder)
    try:
        server.start()
        this = Round(server, plan, "round")
        ends = this.run(expected)
        tally = this.tally
        tally.violations.extend(stop(server))
        tally.violations.extend(check_output(server.output, ends, expected, tally.strays))
    finally:
        server.kill()
        server.end()
    tally.seconds = time.monotonic() - began
    return tally


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--undisturbed", type=Path, help="folder to keep undisturbed clips in")
    parser.add_argument("--kill", action="append", choices=[*PARTS, *WHOLES], help="these alone")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "The Sora API", DeprecationWarning)
    total = Tally()
    with tempfile.TemporaryDirectory(prefix="rushes-online-chaos-") as root:
        expected = render_undisturbed(args.undisturbed or Path(root) / "undisturbed")
        print(HEAD, flush=True)
        for number in range(args.first, args.first + args.rounds):
            plan = make_plan(random.Random(f"{args.seed}/{number}"), args.kill or ())
            with tempfile.TemporaryDirectory(dir=root) as folder:
                tally = run_round(Path(folder), plan, expected)
            total.add(tally)
            print(tally.to_row(f"{args.seed}/{number}", ", ".join(tally.struck)), flush=True)
            for each in tally.violations:
                print(f"violation: {each}", file=sys.stderr, flush=True)
    kills = ", ".join(f"{name} {count}" for name, count in sorted(total.kills.items()))
    print(total.to_row("all", f"{total.kills.total()}: {kills} ({total.in_flight})"))
    print("calls made again:", dict(sorted(total.again.items())))
    sys.exit(1 if total.violations else 0)


if __name__ == "__main__":
    main()
