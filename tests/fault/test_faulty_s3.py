"""A run through a storage that throttles, errs, cuts, delivers twice, and loses replies."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import metrics
from jobs.clean import clean_output
from pipeline import bucket
from pipeline.documents import Commit
from pipeline.errors import UsageError
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.faulty_s3 import FAULTS, serve_faults
from tests.support.night import CLIPS, check_night, commit, final_state, run_night
from tests.support.outputs import IDENTITY, A, draft
from tests.support.s3 import BUCKET

CALLS = 12
"""A call that the storage ends is made again, as a user or Kubernetes would."""
LAST_GOOD = 40
"""The request after which a storage is broken for good."""
BROKEN = r"fault|Could not connect|Connection was closed|Internal Server Error"
"""What is said of it: of a HEAD, whose answer has no text, the status alone."""
READS = ("GET", "HEAD")


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let botocore wait a hundredth of a second where it would wait longer and longer."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.01)
    monkeypatch.setattr("pipeline.ledger.RETRY_DELAY_S", 0.01)


class Dice:
    """What strikes a share of all requests, as the dice of a seed fall."""

    def __init__(self, faults: tuple[str, ...], seed: str, share: float) -> None:
        self.faults, self.share = faults, share
        self.random = random.Random(seed)
        self.unread = set[str]()

    def __call__(self, method: str, path: str) -> str | None:
        possible = [each for each in self.faults if self.fits(each, method, path)]
        if method in READS:
            self.unread.discard(path)
        elif method == "PUT":
            self.unread.add(path)
        struck = possible and self.random.random() < self.share
        return self.random.choice(possible) if struck else None

    def fits(self, fault: str, method: str, path: str) -> bool:
        """Return whether a fault can happen to a request: a delay only to a first read."""
        if fault == "reply cut in half":
            return method == "GET"
        return path in self.unread and method in READS if fault == "not there yet" else True


def run_to_the_end(output: str, folder: Path, clips: tuple[str, ...]) -> None:
    """Call until a call ends well."""
    made, ended = Counter[str](), list[Exception]()
    for _ in range(CALLS):
        try:
            run_night(ObjectStore(output), folder, made, clips)
        except (OSError, UsageError) as error:
            ended.append(error)
        else:
            return
    raise AssertionError(f"no call of {CALLS} ended well: {ended}")


@pytest.mark.parametrize("fault", [*FAULTS, "all of them"])
def test_a_night_on_a_faulty_storage(
    fault: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    faults, clips = (FAULTS, CLIPS) if fault == "all of them" else ((fault,), CLIPS[:1])
    share = 0.25 if fault == "not there yet" else 0.12
    with serve_faults(s3_server, Dice(faults, fault, share)) as proxy, monkeypatch.context() as to:
        to.setenv("AWS_ENDPOINT_URL", proxy.url)
        run_to_the_end(output, tmp_path, clips)
        assert proxy.struck.keys() <= set(faults)
        assert proxy.struck.total() >= 2
    check_night(ObjectStore(output), clips)
    clean_output(output, remove=True, unfinished=False, say=print)
    check_night(ObjectStore(output), clips)


def test_writers_race_for_one_clip_through_a_faulty_storage(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    Ledger(ObjectStore(output)).open_output(IDENTITY)
    barrier = threading.Barrier(8)

    def write(number: int) -> Commit | None:
        folder = tmp_path / str(number)
        folder.mkdir()
        ledger, each = Ledger(ObjectStore(output)), draft(A)
        barrier.wait(60)
        for _ in range(CALLS):
            try:
                commit(ledger, each, final_state(A), folder)
            except OSError:
                continue
            return ledger.read_commit(A)
        return None

    harmless = tuple(each for each in FAULTS if each != "not there yet")
    with (
        serve_faults(s3_server, Dice(harmless, "race", 0.15)) as proxy,
        monkeypatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with ThreadPoolExecutor(8) as threads:
            commits = list(threads.map(write, range(8)))
        assert proxy.struck.total() >= 5
    ledger = Ledger(ObjectStore(output))
    assert [each.clip_id for each in ledger.read_commits()] == [A]
    winner = ledger.read_commit(A)
    assert {each.attempt for each in commits if each} == {winner.attempt}
    assert ledger.store.read(winner.video.key) == final_state(A)


@pytest.mark.parametrize("fault", ["internal error", "gone"])
def test_a_storage_that_stays_broken_ends_the_call_and_harms_nothing(
    fault: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    requests = Counter[str]()

    def choose(method: str, path: str) -> str | None:
        requests["all"] += 1
        if requests["all"] == LAST_GOOD and fault == "gone":
            threading.Thread(target=proxy.close).start()
        if requests["all"] <= LAST_GOOD:
            return None
        return "cut before it arrives" if fault == "gone" else fault  # while connections last

    with serve_faults(s3_server, choose) as proxy, monkeypatch.context() as to:
        to.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(OSError, match=BROKEN):
            run_night(ObjectStore(output), tmp_path, Counter())
    run_night(ObjectStore(output), tmp_path, Counter())
    check_night(ObjectStore(output))


def test_calls_that_are_made_again_are_counted(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bucket.on_retry == metrics.STORE_RETRIES.inc
    counted = list[int]()
    monkeypatch.setattr(bucket, "on_retry", counted.append)
    strikes = iter(["throttled", "internal error"])
    with serve_faults(s3_server, lambda *_: next(strikes, None)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = ObjectStore(f"s3://{BUCKET}/{uuid.uuid4().hex}")
        store.put("a.txt", b"a")
        assert proxy.struck.total() == 2
        assert store.read("a.txt") == b"a"
    assert sum(counted) == 2
    with pytest.raises(OSError, match="Could not connect"):
        ObjectStore(store.uri).read("a.txt")
    assert sum(counted) > 2, "nobody listens any more"
