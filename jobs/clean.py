"""`rushes clean`: list, and remove, what an output holds that nobody will read, or wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.results import write_results
from pipeline.errors import UsageError
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
    output: str,
    *,
    remove: bool,
    unfinished: bool,
    say: Callable[[str], None],
    tables: Sequence[str] = (),
) -> list[Kind]:
    """Return an output's garbage by kind; with `remove`, remove it, under the output's lease.

    Saved work that a run would go on from is kept unless `unfinished` is given. `tables` go, too:
    their rows, manifests and rejects, but no clip. They may be damaged.

    Raises:
        UsageError: there is no output here, or no such table in it, another table of it is damaged,
            or a run writes it.
    """
    store = ObjectStore(output)
    Ledger(store).read_output()
    _check_tables(Ledger(store), tables)
    if remove:
        lease = Lease.acquire(store, LeaseSpec().limit_s, say=say)
        with lease.kept(say):
            ledger = Ledger(store, lease.epoch)
            kinds = _clean(ledger, remove=True, unfinished=unfinished, tables=tables)
            if tables:
                write_results(ledger)
            return kinds
    held = read_lease(store)
    if held and not held.is_over():
        raise LeaseHeldError(
            f"{store.uri} is being written by another run: {held}; clean it after its end "
            "(if it has died, --yes waits for its time limit and takes over)"
        )
    return _clean(Ledger(store), remove=False, unfinished=unfinished, tables=tables)


def _check_tables(ledger: Ledger, tables: Sequence[str]) -> None:
    known = ledger.table_names()
    for name in tables:
        if name not in known:
            raise UsageError(
                f"--table {name}: {ledger.store.uri} has no such table; "
                f"it has {', '.join(known) or 'none'}"
            )


def _clean(ledger: Ledger, *, remove: bool, unfinished: bool, tables: Sequence[str]) -> list[Kind]:
    garbage = find_garbage(ledger, tables)
    kinds = [
        ("attempts that no commit names", garbage.attempts, True),
        ("saved work of clips that are done", garbage.checkpoints, True),
        ("saved work that a run would go on from", garbage.unfinished, unfinished),
        ("what finished videos began with", garbage.inputs, True),
        ("left by runs that were cut off", garbage.leftovers, True),
    ]
    wanted = {f"table {name}": ledger.table_keys(name) for name in tables}
    listed = [*kinds, *((name, keys, True) for name, keys in wanted.items())]
    found = [Kind(name, len(keys), measure(ledger, keys), goes) for name, keys, goes in listed]
    if remove:
        for _, keys, goes in kinds:
            if goes:
                remove_garbage(ledger, keys)
        for name in tables:
            ledger.drop_table(name)
    return found
