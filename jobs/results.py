"""What an output shows of its rows: the manifest, and the page to review them on."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa

from jobs.contact_sheet import MAX_ROWS, render_contact_sheet
from pipeline.counts import add_counts
from pipeline.documents import OutputStatus, TableStatus
from pipeline.ledger import Ledger
from pipeline.manifest import write_manifest, write_success


def write_results(ledger: Ledger, first: Collection[str] = ()) -> OutputStatus:
    """Write the manifest and the page of what the output holds now, and last `_SUCCESS`.

    Where the page has no room for all rows, the tables named `first` come before the others, and
    of either what failed or was rejected before what is good.
    """
    status = write_manifest(ledger)
    called = [table for table in status.tables if table.name in first]
    others = [table for table in status.tables if table.name not in first]
    pages, room = list[pa.Table](), MAX_ROWS
    for tables in (called, others):
        for part in _choose_rows(ledger, tables, room):
            pages.append(part)
            room -= part.num_rows
    title = ledger.store.uri.rstrip("/").rpartition("/")[2]
    page = render_contact_sheet(pages, title, left_out=status.rows - (MAX_ROWS - room))
    ledger.store.put("index.html", page.encode())
    write_success(ledger, status)
    return status


def _choose_rows(ledger: Ledger, tables: Sequence[TableStatus], room: int) -> Iterator[pa.Table]:
    """Yield so many rows of some manifests, in their order; all bad ones before any good one."""
    import pyarrow.compute as pc

    counts = add_counts(tables)
    bad_room = min(counts.failed + counts.rejected, room)
    good_room = room - bad_room
    for table in tables:
        for part in ledger.read_parts(f"manifest/{table.name}.parquet"):
            is_bad = pc.is_in(part["status"], pa.array(["failed", "rejected"]))
            bad = pc.indices_nonzero(is_bad)[:bad_room].to_pylist()
            good = pc.indices_nonzero(pc.invert(is_bad))[:good_room].to_pylist()
            bad_room, good_room = bad_room - len(bad), good_room - len(good)
            yield part.take(pa.array(sorted(bad + good), pa.int64()))
            if not bad_room and not good_room:
                return
