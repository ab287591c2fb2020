"""`rushes clean`: list, and remove, what an output holds that nobody will read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.garbage import find_garbage, measure, remove_garbage
from pipeline.lease import Lease, LeaseHeldError, read_lease
from pipeline.ledger import Ledger
from pipeline.recipe import LeaseSpec
from pipeline.store import ObjectStore


@dataclass(frozen=True)
class Kind:
    """One kind of garbage: how much of it there is, and whether it goes."""

    name: str
    objects: int
    size_bytes: int
    goes: bool


def clean_output(
    output: str, *, remove: bool, unfinished: bool, say: Callable[[str], None]
) -> list[Kind]:
    """Return an output's garbage by kind; with `remove`, remove it, under the output's lease.

    Saved work that a run would go on from is kept unless `unfinished` is given.

    Raises:
        UsageError: there is no output here, or a run writes it.
    """
    store = ObjectStore(output)
    Ledger(store).read_output()
    if remove:
        lease = Lease.acquire(store, LeaseSpec().limit_s, say=say)
        with lease.kept(say):
            return _clean(Ledger(store, lease.epoch), remove=True, unfinished=unfinished)
    held = read_lease(store)
    if held and not held.is_over():
        raise LeaseHeldError(
            f"{store.uri} is being written by another run: {held}; clean it after its end "
            "(if it has died, --yes waits for its time limit and takes over)"
        )
    return _clean(Ledger(store), remove=False, unfinished=unfinished)


def _clean(ledger: Ledger, *, remove: bool, unfinished: bool) -> list[Kind]:
    garbage = find_garbage(ledger)
    kinds = [
        ("attempts that no commit names", garbage.attempts, True),
        ("saved work of clips that are done", garbage.checkpoints, True),
        ("saved work that a run would go on from", garbage.unfinished, unfinished),
        ("what finished videos began with", garbage.inputs, True),
        ("left by runs that were cut off", garbage.leftovers, True),
    ]
    found = [Kind(name, len(keys), measure(ledger, keys), goes) for name, keys, goes in kinds]
    if remove:
        for _, keys, goes in kinds:
            if goes:
                remove_garbage(ledger, keys)
    return found
