"""Random faults over a small night's run, round after round, until every row is done.

A round renders one table into a fresh output by `rushes render`, struck at random moments: the
driver, a rank, the pool, one of Ray Data's actors or the raylet killed, a rank or the driver
stopped as if it hung, a saved state damaged, SIGTERM. Whenever the command ends unfinished it is
called again. Then all that the README promises is checked against the store alone, and every video
is compared by its hash with an undisturbed run's.

Prints a line a round and last `rounds=N faults=N clips=N lost=0 duplicated=0 differing=0
repeated_steps=x%`; exits with 1 where a clip was lost, made twice or differs. `repeated_steps` is
the denoising steps that were made more than once, as the pools counted them. What a gang made of
a chunk (a quarter second) when it was killed isn't counted, nor what a pool made in the tenth of a
second before it or its driver was.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.clean import clean_output
from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore

ROWS = 40
LONG_ROWS = 6
SHORT_STEPS, LONG_STEPS = 4, 100
FAULTS_A_ROUND = 4
EARLY = 0.2
"""The share of calls that are struck while they start; the others once ranks are at work."""
EVERY_S = 0.5
CALLS = 25
CALL_TIMEOUT_S = 600.0
OVERRIDES = (
    f"checkpoint.every_s={EVERY_S}",
    "lease.limit_s=6",
    "pool.max_attempts=8",
    "pool.step_timeout_min_s=8",
)
_DRIVE = """
import json, sys
import jobs.run
from jobs.recipes import find_recipe
from jobs.render import render_tables
from jobs.run import RunBrokenError

class Counting:
    def __init__(self): self.before = self.last = 0
    def planned(self, *_): pass
    def ended(self, _): pass
    def noted(self, text): print("note:", text, flush=True)
    def stepped(self, steps, ready, gangs):
        if steps < self.last: self.before += self.last  # a pool that was started anew
        self.last = steps
        print(json.dumps({"steps": self.before + steps}), flush=True)

jobs.run.POLL_S = 0.1
table, output, *overrides = sys.argv[1:]
try:
    result = render_tables([table], output, find_recipe(overrides=overrides), Counting())
except RunBrokenError as error:
    print("broken:", error, flush=True)
    sys.exit(1)
status = result.status
unfinished = status.failed + status.remaining
sys.exit(75 if result.ended_by else 3 if unfinished else 0)
"""


@dataclass
class Tally:
    """What rounds have brought."""

    faults: Counter[str] = field(default_factory=Counter[str])
    clips: int = 0
    lost: int = 0
    duplicated: int = 0
    differing: int = 0
    steps_needed: int = 0
    steps_made: int = 0

    def __str__(self) -> str:
        """Return the counts in one line."""
        repeated = 100 * (self.steps_made / self.steps_needed - 1) if self.steps_needed else 0
        return (
            f"faults={self.faults.total()} clips={self.clips} lost={self.lost} "
            f"duplicated={self.duplicated} differing={self.differing} "
            f"repeated_steps={repeated:.2f}%"
        )

    def add(self, other: Tally) -> None:
        """Count another's in."""
        self.faults += other.faults
        for name in ("clips", "lost", "duplicated", "differing", "steps_needed", "steps_made"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def write_table(path: Path) -> int:
    """Write the round's table; return how many denoising steps it asks for."""
    long = [number % (ROWS // LONG_ROWS) == 1 for number in range(ROWS)][:ROWS]
    steps = [LONG_STEPS if each else SHORT_STEPS for each in long]
    print(f"{ROWS} clips, {sum(steps)} steps", flush=True)
    table = {
        "prompt": [f"a red ball moving left, take {number}" for number in range(ROWS)],
        "width": [64 if each else 32 for each in long],
        "height": [64 if each else 32 for each in long],
        "num_frames": [17 if each else 5 for each in long],
        "num_inference_steps": steps,
    }
    pq.write_table(pa.table(table), path)
    return sum(steps)


class Call:
    """One call of the command, in a process group of its own."""

    def __init__(self, table: Path, output: Path) -> None:
        """Start it."""
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for as long as the call
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DRIVE, str(table), str(output), *OVERRIDES],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._seen: dict[int, psutil.Process] = {}

    def look(self) -> list[psutil.Process]:
        """Return the processes under the call; those of a dead one's are remembered."""
        with suppress(psutil.Error):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                self._seen.setdefault(each.pid, each)
        return [each for each in self._seen.values() if is_alive(each)]

    def find(self, name: str) -> list[psutil.Process]:
        """Return those of them whose command line begins or ends with `name`."""
        return [each for each in self.look() if matches(each, name)]

    def end(self) -> tuple[int, str]:
        """Wait for its end, and end what it has left; return its exit code and what it said."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(CALL_TIMEOUT_S)
        left = self.look()
        for each in left:
            with suppress(psutil.Error):
                each.kill()
        with suppress(ProcessLookupError):
            self.process.kill()
        code = self.process.wait()
        self.log.seek(0)
        return code, self.log.read()


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs: it is neither gone nor a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


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


def strike_driver(number: int) -> Callable[[Call, Path, random.Random], bool]:
    """Return a fault that sends a signal to the driver."""

    def strike(call: Call, output: Path, dice: random.Random) -> bool:
        call.look()
        call.process.send_signal(number)
        return True

    return strike


def strike_name(name: str, number: int = signal.SIGKILL) -> Callable[..., bool]:
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


FAULTS: dict[str, Callable[[Call, Path, random.Random], bool]] = {
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


def read_steps(log: str) -> int:
    """Return the steps that a call has counted."""
    counted = [json.loads(line)["steps"] for line in log.splitlines() if line.startswith("{")]
    return counted[-1] if counted else 0


def watch_commits(output: Path, seen: dict[str, bytes]) -> int:
    """Remember each commit as first seen; return how many are no longer as they were."""
    changed = 0
    for path in (output / "commits").glob("*/*.json"):
        if path.name.startswith("."):
            continue
        content = path.read_bytes()
        changed += seen.setdefault(path.stem, content) != content
    return changed


def run_round(folder: Path, table: Path, steps: int, dice: random.Random, faults: int) -> Tally:
    """Render the table into a fresh output under so many faults; return what it brought."""
    output = folder / "out"
    tally, seen = Tally(steps_needed=steps), dict[str, bytes]()
    for number in range(CALLS):
        call = Call(table, output)
        sign = "ray::GangPool" if dice.random() < EARLY else "ray::RankWorker.advance"
        while call.process.poll() is None and not call.find(sign):
            time.sleep(0.2)
        while call.process.poll() is None:
            deadline = time.monotonic() + dice.uniform(0.2, 8)
            while time.monotonic() < deadline and call.process.poll() is None:
                time.sleep(0.2)
                call.look()
            if faults and call.process.poll() is None:
                name = dice.choice(sorted(FAULTS))
                if FAULTS[name](call, output, dice):
                    tally.faults[name] += 1
                    faults -= 1
            tally.duplicated += watch_commits(output, seen)
        code, log = call.end()
        tally.steps_made += read_steps(log)
        if code == 0:
            break
        print(f"  call {number + 1} ended with {code}: {tail(log)}", flush=True)
    tally.duplicated += watch_commits(output, seen)
    return tally


def tail(log: str) -> str:
    """Return the last line of a log that is no count."""
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("{")]
    return lines[-1][:200] if lines else ""


def check(output: Path, expected: dict[str, str], tally: Tally) -> None:
    """Count what is lost, twice there, or other than in an undisturbed run."""
    ledger = Ledger(ObjectStore(output))
    commits = {each.clip_id: each for each in ledger.read_commits()}
    tally.clips = len(commits)
    tally.lost = sum(clip_id not in commits for clip_id in expected)
    status = ledger.status()
    assert status.rows == ROWS, status
    tally.lost += status.failed + status.remaining
    tally.duplicated += len(commits.keys() - expected.keys())
    for clip_id, commit in commits.items():
        held = [ledger.store.checksum(each.key)[0] for each in (commit.video, commit.poster)]
        whole = held == [commit.video.sha256, commit.poster.sha256]
        tally.differing += not whole or commit.video.sha256 != expected.get(clip_id)
    clean_output(str(output), remove=True, unfinished=False, say=print)
    files = set(ledger.store.list("clips"))
    named = {each.key for commit in commits.values() for each in (commit.video, commit.poster)}
    tally.duplicated += len(files - named)
    tally.lost += len(named - files) + (not ledger.store.exists("_SUCCESS"))
    assert not any(ledger.store.list(CHECKPOINTS)), "saves of clips that are done"


def render_undisturbed(folder: Path, table: Path) -> dict[str, str]:
    """Return each clip's video hash from a run without faults."""
    call = Call(table, folder / "out")
    while call.process.poll() is None:
        time.sleep(0.5)
        call.look()
    code, log = call.end()
    if code:
        raise SystemExit(f"the undisturbed run ended with {code}: {log}")
    print(f"undisturbed: {read_steps(log)} steps", flush=True)
    return {each.clip_id: each.video.sha256 for each in read_all(folder / "out")}


def read_all(output: Path) -> Iterator[Commit]:
    """Yield an output's commits."""
    return Ledger(ObjectStore(output)).read_commits()


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--faults", type=int, default=FAULTS_A_ROUND, help="faults a round")
    args = parser.parse_args()
    total = Tally()
    with tempfile.TemporaryDirectory(prefix="rushes-chaos-") as root:
        table = Path(root) / "table.parquet"
        steps = write_table(table)
        expected = render_undisturbed(Path(root) / "undisturbed", table)
        for number in range(args.first, args.first + args.rounds):
            began = time.monotonic()
            dice = random.Random(f"{args.seed}/{number}")
            with tempfile.TemporaryDirectory(dir=root) as folder:
                tally = run_round(Path(folder), table, steps, dice, args.faults)
                check(Path(folder) / "out", expected, tally)
            total.add(tally)
            struck = ", ".join(f"{name} {n}" for name, n in sorted(tally.faults.items()))
            took = time.monotonic() - began
            print(f"round {number}: {tally} in {took:.0f} s ({struck})", flush=True)
    print("faults:", dict(sorted(total.faults.items())))
    print(f"rounds={args.rounds} {total}")
    bad = total.lost or total.duplicated or total.differing
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
