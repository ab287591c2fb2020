"""One run on Ray: a cluster, a pool of gangs, the batch, and a clean end whatever ends it.

The composition root of the batch: everything it needs is made here and handed down.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.meter import RunMeter
from jobs.stop import StopSignal, break_off, find_stop
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Commit, Failure, new_attempt
from pipeline.errors import UsageError
from pipeline.ledger import Ledger
from pipeline.request import RenderRequest

if TYPE_CHECKING:
    from cluster.answers import PoolProgress
    from cluster.client import PoolClient
    from jobs.plan import PlannedCall
    from jobs.render import Reporter

POLL_S = 0.5
STOP_TIMEOUT_S = 30.0
SILENT_LOOKS = 3
"""After so many looks at the pool without an answer it is told of."""


class RunBrokenError(Exception):
    """The run can't go on; what is committed stays, and the same call again continues."""


@dataclass
class PoolUse:
    """What a run's gangs have taken so far."""

    gangs_lost: int = 0
    device_seconds: float = 0.0
    """For how long gangs were held, times their ranks."""
    _last: tuple[int, float] = (0, 0.0)

    def count(self, now: PoolProgress) -> None:
        """Add what has come since the last look.

        A pool that Ray has started anew counts from zero: what the one before took since the last
        look at it, at most `POLL_S`, is not known.
        """
        gangs_lost, device_seconds = self._last
        if now.device_seconds < device_seconds or now.rebuilds < gangs_lost:
            gangs_lost, device_seconds = 0, 0.0
        self.gangs_lost += now.rebuilds - gangs_lost
        self.device_seconds += now.device_seconds - device_seconds
        self._last = now.rebuilds, now.device_seconds


def run_on_ray(
    call: PlannedCall,
    ledger: Ledger,
    requests: dict[str, RenderRequest],
    reporter: Reporter,
    address: str | None,
    use: PoolUse,
) -> Iterator[Commit | Failure]:
    """Start Ray and the pool, render, and leave nothing behind; yield each clip's end.

    `use` is kept up to date meanwhile.

    Raises:
        UsageError: the model can't be loaded; or no more, if clips have ended.
        RunBrokenError: the run can't go on.
        StopSignal: SIGTERM or SIGHUP came; what is unfinished is saved.
    """
    work_key = f"work/{new_attempt()}.parquet"
    try:
        from cluster.batch import make_work, run_batch
        from cluster.demand import READ_CPUS, describe_shortage, describe_wait
        from cluster.session import ray_session
        from cluster.stages import RenderSpec

        ledger.put_table(work_key, make_work(requests))
        with ray_session(call.recipe, address):
            short = describe_shortage(call.recipe, READ_CPUS)
            if short or (address and (short := describe_wait(call.recipe))):
                reporter.noted(short)
            meter = RunMeter(ledger.store.uri, requests)
            with (
                _unless_lost(reporter),
                meter.told(),
                _pool(call, ledger, reporter, use, meter) as pool,
            ):
                spec = RenderSpec(call.recipe, call.model_fingerprint)
                try:
                    with closing(run_batch(spec, ledger, pool, work_key)) as outcomes:
                        yield from meter.follow(outcomes)
                except Exception as error:
                    raise _judge(_find_cause(error)) from error
    except Exception as error:
        if find_stop():  # what it broke off may have raised anything
            raise StopSignal(find_stop()) from error
        raise
    finally:
        ledger.store.delete(work_key)


def _judge(cause: str) -> Exception:
    """Return what is to be raised for a cause: a model that can't be loaded is the call's fault."""
    kind, _, why = cause.partition(": ")
    is_ours = kind in ("UsageError", "UnusableModelError")
    return UsageError(why) if is_ours else RunBrokenError(f"the run broke: {cause}")


def _find_cause(error: BaseException) -> str:
    """Return what first went wrong, out of what Ray and Ray Data wrapped around it, in one line.

    Of an error in an actor they pass on the printed trace: a chain of errors, the last their own.
    """
    from ray.exceptions import RayError

    chain = _NEXT_ERROR.split(str(error)) if isinstance(error, RayError) else ()
    for link in reversed(chain):
        said = [line for line in link.splitlines() if _ERROR_LINE.match(line)]
        if said and not said[0].startswith(_WRAPPER):
            return _MODULES.sub("", said[0])
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), 'no message')}"


_NEXT_ERROR = re.compile(
    r"^(?:The above exception was the direct cause of the following exception:"
    r"|During handling of the above exception, another exception occurred:)$",
    re.MULTILINE,
)
_WRAPPER = "ray.exceptions.UserCodeException"
_MODULES = re.compile(r"^(?:pipeline|cluster|ray)\.(?:\w+\.)*")
_ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(: |$)")


@contextmanager
def _unless_lost(reporter: Reporter) -> Generator[None]:
    """Break the block off where its cluster is lost.

    Raises:
        RunBrokenError: it is.
    """
    from cluster.loss import is_gone, wait_for_loss

    ended = threading.Event()

    def watch() -> None:
        if wait_for_loss(reporter.noted, ended) and not find_stop():
            break_off()

    watcher = threading.Thread(target=watch, name="loss", daemon=True)
    watcher.start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if is_gone() and not find_stop():
            raise RunBrokenError("the run broke: its Ray has ended, or gives no answer") from error
        raise
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _pool(
    call: PlannedCall, ledger: Ledger, reporter: Reporter, use: PoolUse, meter: RunMeter
) -> Generator[PoolClient]:
    """Join the recipe's pool; tell the reporter of its steps and troubles, count its use."""
    import ray
    from ray.exceptions import RayError

    from cluster.client import HUNG_LOOKS, LOOK_TIMEOUT_S, join_pool
    from cluster.loss import UNSAVED, hear, is_gone

    recipe = call.recipe
    checkpoints = Checkpoints(ledger.store, call.model_fingerprint, ledger.epoch)
    try:
        pool = join_pool(recipe, checkpoints)
    except (RayError, TimeoutError) as error:
        raise RunBrokenError(f"the run broke: {_find_cause(error)}") from error
    ended, warned = threading.Event(), 0

    def tell(now: PoolProgress) -> None:
        nonlocal warned
        use.count(now)
        meter.stepped(now.steps_done, now.clips)
        gangs = now.gangs - now.gangs_asleep
        reporter.stepped(now.steps_done, now.gangs_ready, gangs, meter.pace)
        for text in now.new_warnings(warned):
            reporter.noted(text)
        warned = now.warned

    def watch() -> None:
        silent = 0
        while not ended.wait(POLL_S):
            try:
                now: PoolProgress = ray.get(pool.progress(), timeout=LOOK_TIMEOUT_S)
            except TimeoutError:
                silent += 1
                if silent == SILENT_LOOKS:
                    silent_s = silent * LOOK_TIMEOUT_S
                    reporter.noted(f"the pool of gangs gives no answer since {silent_s:.0f} s")
                if silent % HUNG_LOOKS == 0:
                    reporter.noted("the pool of gangs hangs: its process is ended and starts anew")
                    pool.restart()
            except RayError:
                continue  # what it is, the clips' calls tell
            else:
                tell(now)
                silent = 0

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    is_stopped = False
    try:
        yield pool
    except KeyboardInterrupt:
        if is_gone():
            raise
        is_stopped = True
        reporter.noted(
            f"stopping: saving what is unfinished, up to {recipe.checkpoint.grace_s:.0f} s"
        )
        raise
    finally:
        ended.set()
        leaving = pool.leave()
        watcher.join(LOOK_TIMEOUT_S)
        last: PoolProgress | None = hear(leaving, recipe.checkpoint.grace_s + STOP_TIMEOUT_S)
        if last:
            tell(last)
        elif is_stopped:
            reporter.noted(UNSAVED)
