"""Random faults over a small night's run, round after round, until every row is done.

A round renders one table into a fresh output by `rushes render`, struck at random moments: the
driver, a rank, the pool, one of Ray Data's actors or the raylet killed, a rank or the driver
stopped as if it hung, a saved state damaged, SIGTERM. With `--nodes N` it runs on a head and so
many worker nodes, of which one's raylet is killed, the head's too, or one is drained. Whenever the
command ends unfinished it is called again. Then all that the README promises is checked against the
store alone, and every video is compared by its hash with an undisturbed run's.

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
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.faults import FAULTS, NODE_FAULTS, Call
from jobs.clean import clean_output
from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.nodes import start_nodes

ROWS = 40
LONG_ROWS = 6
SHORT_STEPS, LONG_STEPS = 4, 100
FAULTS_A_ROUND = 4
EARLY = 0.2
"""The share of calls that are struck while they start; the others once ranks are at work."""
CALLS = 25
NODE_CPUS = 3
"""Of each worker node: two hold all of a run's actors, and one of them its gangs."""


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


@dataclass
class Struck:
    """A round as it goes on."""

    output: Path
    dice: random.Random
    tally: Tally
    left: int
    """Faults still to come."""
    seen: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """Each commit, as first seen."""

    def strike(self, call: Call) -> None:
        """Strike a call at random moments until it ends."""
        faults = NODE_FAULTS if call.nodes else FAULTS
        sign = "ray::GangPool" if self.dice.random() < EARLY else "ray::RankWorker.advance"
        while call.is_alive() and not call.find(sign):
            time.sleep(0.2)
        while call.is_alive():
            deadline = time.monotonic() + self.dice.uniform(0.2, 8)
            while time.monotonic() < deadline and call.is_alive():
                time.sleep(0.2)
                call.look()
            if self.left and call.is_alive():
                name = self.dice.choice(sorted(faults))
                if faults[name](call, self.output, self.dice):
                    self.tally.faults[name] += 1
                    self.left -= 1
            self.tally.duplicated += watch_commits(self.output, self.seen)

    def run(self, table: Path, workers: int) -> None:
        """Call until all is done: each on a local Ray, or on one cluster while that has a head."""
        with ExitStack() as cluster:
            nodes = None
            for number in range(CALLS):
                if workers and not (nodes and nodes.has_head()):
                    cluster.close()
                    nodes = cluster.enter_context(start_nodes(0, NODE_CPUS, workers))
                call = Call(table, self.output, nodes)
                self.strike(call)
                code, log = call.end()
                self.tally.steps_made += read_steps(log)
                if code == 0:
                    break
                print(f"  call {number + 1} ended with {code}: {tail(log)}", flush=True)
        self.tally.duplicated += watch_commits(self.output, self.seen)


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
    while call.is_alive():
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
    parser.add_argument("--nodes", type=int, default=0, help="worker nodes; 0: a local Ray a call")
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
                tally = Tally(steps_needed=steps)
                Struck(Path(folder) / "out", dice, tally, args.faults).run(table, args.nodes)
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
