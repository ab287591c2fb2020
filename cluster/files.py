"""`Files`: the dispatcher's index of callers' files, and the one who makes and removes them."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable

from cluster.answers import Refusal
from pipeline.uploads import FILE_ID, FileRecord, Uploads

FULL_RETRY_S = 60


class Files:
    """Lives on one event loop; every method answers for one owner's files alone."""

    def __init__(self, uploads: Uploads, max_files: int) -> None:
        """Know of no file yet; an owner may have uploaded `max_files` and not deleted them."""
        self.uploads = uploads
        self._max_files = max_files
        self._records: dict[str, FileRecord] = {}
        self._keeping = Counter[str]()  # of each owner, about to be files

    async def load(self) -> None:
        """Learn of the files that the store has."""
        for record in await asyncio.to_thread(self.uploads.load):
            self._records[record.id] = record

    async def add(self, record: FileRecord) -> FileRecord | Refusal:
        """Make an uploaded content a file; it is durable when this returns. Or refuse it."""
        owned = (each for each in self._records.values() if each.owner == record.owner)
        uploaded = sum(each.purpose == "batch" for each in owned)
        if uploaded + self._keeping[record.owner] >= self._max_files:
            return Refusal("files", FULL_RETRY_S)
        self._keeping[record.owner] += 1
        try:
            await asyncio.to_thread(self.uploads.keep, record)
            self._records[record.id] = record
        finally:
            self._keeping[record.owner] -= 1
        return record

    async def make(self, record: FileRecord, content: bytes) -> None:
        """Make a file of what a batch has brought; made again, it is the same file."""
        await asyncio.to_thread(self.uploads.write, record.id, content)
        await asyncio.to_thread(self.uploads.keep, record)
        self._records[record.id] = record

    async def find(self, owner: str, file_id: str) -> FileRecord | None:
        """Return an owner's file; None where they have none of that id."""
        record = self._records.get(file_id)
        return record if record and record.owner == owner else None

    async def list(
        self, owner: str, after: str | None, limit: int, purpose: str | None, *, newest_first: bool
    ) -> tuple[list[FileRecord], bool] | None:
        """Return a page of an owner's files and whether there are more; None: no such `after`."""
        mine = [
            each.id
            for each in self._records.values()
            if each.owner == owner and purpose in (None, each.purpose)
        ]
        page = cut_page(mine, FILE_ID, after, limit, newest_first=newest_first)
        return page and ([self._records[each] for each in page[0]], page[1])

    async def delete(self, owner: str, file_id: str) -> bool:
        """Remove an owner's file; return whether there was one."""
        if await self.find(owner, file_id) is None:
            return False
        await asyncio.to_thread(self.uploads.forget, file_id)
        self._records.pop(file_id, None)
        return True


def cut_page(
    ids: Iterable[str], pattern: str, after: str | None, limit: int, *, newest_first: bool
) -> tuple[list[str], bool] | None:
    """Return a page of ids and whether there are more; None: `after` is no id of this `pattern`.

    It is a place in the order of all ids, whatever has it: somebody may delete what is listed as
    they go on from page to page.
    """
    found = sorted(ids, reverse=newest_first)
    if after is not None:
        if not re.fullmatch(pattern, after):
            return None
        found = [each for each in found if (each < after if newest_first else each > after)]
    return found[:limit], len(found) > limit
