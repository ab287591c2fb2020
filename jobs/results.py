"""What an output shows of its rows: the manifest, and the page to review them on."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from itertools import chain

import pyarrow as pa

from jobs.contact_sheet import MAX_ROWS, render_contact_sheet
from pipeline.documents import OutputStatus
from pipeline.ledger import Ledger
from pipeline.manifest import write_manifest


def write_results(ledger: Ledger) -> OutputStatus:
    """Write the manifest and the page of what the output holds now."""
    status = write_manifest(ledger)
    tables, room = list[pa.Table](), MAX_ROWS
    for part in chain.from_iterable(map(ledger.read_parts, ledger.list_tables("manifest"))):
        tables.append(part.slice(0, room))
        room -= tables[-1].num_rows
        if not room:
            break
    title = ledger.store.uri.rstrip("/").rpartition("/")[2]
    page = render_contact_sheet(tables, title, left_out=status.rows - (MAX_ROWS - room))
    ledger.store.put("index.html", page.encode())
    return status
