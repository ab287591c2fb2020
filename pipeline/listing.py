# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Listings: the table files that a folder or a glob names, and what of it is passed over.

Hidden files (`._ads.parquet`, `_tmp/`) are, and whatever lies in an output of this program: its own
tables and documents have the suffixes of prompt tables, and would grow with every run.
"""

from __future__ import annotations

import glob
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.formats import FORMATS

MAGIC = re.compile(r"[*?\[]")
_HIDDEN = re.compile(r"[._]")


@dataclass(frozen=True)
class Listing:
    """The table files of a folder or a glob, in the order of their paths."""

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was passed over that somebody may miss, a line each."""


def list_folder(filesystem: Any, folder: str) -> Listing:
    """Return the table files in a folder, at any depth."""
    found = filesystem.find(folder)
    return _choose(filesystem, folder, (file for file in found if not _is_hidden(file, folder)))


def list_glob(filesystem: Any, path: str) -> tuple[str, Listing]:
    """Return the folder before a glob's first wildcard, and the files that match or lie below.

    A wildcard in the name of a folder that is there is none. Hidden files match only where the
    pattern asks for any.
    """
    head, pattern = _split_glob(filesystem, path)
    matches = filesystem.glob(f"{glob.escape(head)}/{pattern}", detail=True)
    found = set[str]()
    for match, info in matches.items():
        found.update(filesystem.find(match) if info["type"] == "directory" else [match])
    if not any(map(_HIDDEN.match, pattern.split("/"))):
        found = {file for file in found if not _is_hidden(file, head)}
    folder = head or "/"
    return folder, _choose(filesystem, folder, found)


def suffix_of(path: str) -> str:
    """Return a path's suffix, by which its format is known."""
    return posixpath.splitext(path)[1].lower()


def is_local(filesystem: Any) -> bool:
    """Return whether a filesystem is this machine's."""
    return "file" in filesystem.protocol


def real_path(filesystem: Any, file: str) -> str:
    """Return a file's one path, whatever links lead to it."""
    return str(Path(file).resolve()) if is_local(filesystem) else file


def show_path(filesystem: Any, path: str) -> str:
    """Return a path as messages name it: a local one as it is, else its URI."""
    return path if is_local(filesystem) else filesystem.unstrip_protocol(path)


def list_parents(file: str, folder: str) -> Iterator[str]:
    """Yield the folders above a file, up to `folder`. The root's parent is the root."""
    parent = posixpath.dirname(file)
    while len(parent) > len(folder.rstrip("/")) and parent != "/":
        yield parent
        parent = posixpath.dirname(parent)
    yield parent


def _split_glob(filesystem: Any, path: str) -> tuple[str, str]:
    head, *rest = path.split("/")
    while len(rest) > 1 and (not MAGIC.search(rest[0]) or filesystem.isdir(f"{head}/{rest[0]}")):
        head = f"{head}/{rest.pop(0)}"
    return head, "/".join(rest)


def _is_hidden(file: str, folder: str) -> bool:
    parts = file.removeprefix(f"{folder.rstrip('/')}/").split("/")
    return any(_HIDDEN.match(part) and "=" not in part for part in parts)


def _choose(filesystem: Any, folder: str, files: Iterable[str]) -> Listing:
    """Return those of the files below a folder that are tables: not an output's, and each once."""

    @cache
    def is_output(parent: str) -> bool:
        inside = parent.rstrip("/")
        return filesystem.isfile(f"{inside}/run.json") and any(
            filesystem.isdir(f"{inside}/{name}") for name in ("rows", "lease")
        )

    kept: dict[tuple[str, ...], str] = {}
    passed = Counter[str]()
    notes = list[str]()
    for file in sorted(file for file in files if suffix_of(file) in FORMATS):
        output = next(filter(is_output, list_parents(file, folder)), None)
        first = file if output else kept.setdefault(_identify(filesystem, file), file)
        if output:
            passed[output] += 1
        elif first != file:
            notes.append(f"{file} is {first} by another name, and is read once")
    for output, count in passed.items():
        shown = show_path(filesystem, output)
        notes.append(f"{shown} is an output of rushes, and is passed over (files: {count})")
    return Listing(tuple(kept.values()), tuple(notes))


def _identify(filesystem: Any, file: str) -> tuple[str, ...]:
    """Return what all names of one table share: the file, and what folders say of it."""
    said = (part for part in file.split("/")[:-1] if "=" in part)
    return (real_path(filesystem, file), *said)
