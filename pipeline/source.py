# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Sources: what a TABLE argument names, as one run of rows.

A source is a file, a folder or a glob, on this machine or in any store that fsspec reaches. Its
files are read in the order of their paths, and its `key=value` folders are columns.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from pipeline.errors import UsageError
from pipeline.formats import FORMATS, ROW_MARK, Columns, Part, read_file
from pipeline.labels import join_labels
from pipeline.lakes import refuse_lakes
from pipeline.listing import (
    MAGIC,
    Listing,
    is_local,
    list_folder,
    list_glob,
    real_path,
    show_path,
    suffix_of,
)
from pipeline.store import await_s3

READ_THREADS = 8
_WHOLE = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)
_S3 = ("s3://", "s3a://")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """The files that one TABLE argument names."""

    given: str
    uri: str
    """The normalized, absolute URI: of the file, the folder, or the glob."""
    filesystem: Any
    base: str
    """The folder below which `key=value` folders are columns."""
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a listing passed over that somebody may miss, a line each."""

    @property
    def name(self) -> str:
        """A file-safe name that is the same in every run and differs between URIs."""
        last = self.uri.rstrip("/").rpartition("/")[2]
        stem = last.rpartition(".")[0] or last
        slug = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:48] or "table"
        return f"{slug}-{hashlib.sha256(self.uri.encode('utf-8', 'replace')).hexdigest()[:8]}"

    @property
    def is_file(self) -> bool:
        """Whether it is a file that is named, not a folder or glob with files."""
        return self.uri in map(self.filesystem.unstrip_protocol, self.files)

    @property
    def shown_files(self) -> tuple[str, ...]:
        """Every file as messages name it."""
        if self.is_file:
            return (self.given,)
        return tuple(show_path(self.filesystem, file) for file in self.files)

    @property
    def real_uris(self) -> tuple[str, ...]:
        """The one URI of every file, whatever links lead to it."""
        real = (real_path(self.filesystem, file) for file in self.files)
        return tuple(map(self.filesystem.unstrip_protocol, real))


def find_source(given: str) -> Source:
    """Return the files that `given` names.

    Raises:
        StorageAwayError: an S3 throttles, errs or gives no answer.
        UsageError: there are none, a file's suffix is unknown, the store can't be reached, or they
            are a Delta or Iceberg table's.
    """
    if not given.strip():
        raise UsageError("a table has no name; expected a file, a folder or a glob")
    return _reach(given, lambda: _find(given))


def read_source(source: Source, known: Sequence[str]) -> Columns:
    """Read a source's files: `known` columns as Python values, all others as labels.

    Raises:
        UsageError: a file can't be read as what its suffix says, a column occurs twice, or a
            label's types in two files have none in common.
    """

    def read(path: str, shown: str) -> Columns:
        def read_open() -> Columns:
            with source.filesystem.open(path, "rb") as file:
                return read_file(file, suffix_of(path), shown, known)

        return _reach(shown, read_open)

    if len(source.files) == 1:
        parts = [read(source.files[0], source.shown_files[0])]
    else:
        with ThreadPoolExecutor(READ_THREADS) as threads:
            parts = list(threads.map(read, source.files, source.shown_files))
    folders = read_folders(source)
    pairs = zip(parts, folders, strict=True)
    joined = _join([_add_folders(part, keys, known) for part, keys in pairs], source)
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    notes += _note_folders(source, parts[0], folders[0], known)
    return replace(joined, notes=tuple(notes))


def read_folders(source: Source) -> list[dict[str, int | str | None]]:
    """Return each file's `key=value` folders; a key is a whole number where all its values are."""
    folders: list[dict[str, str | None]] = []
    for path in source.files:
        parts = posixpath.relpath(path, source.base).split("/")[:-1] if source.base else []
        pairs = (part.partition("=") for part in parts if "=" in part)
        folders.append(
            {unquote(key): None if v == _HIVE_NULL else unquote(v) for key, _, v in pairs if key}
        )
    values: dict[str, set[str | None]] = {}
    for each in folders:
        for key, value in each.items():
            values.setdefault(key, set()).add(value)
    whole = {
        key for key, found in values.items() if all(v is None or _WHOLE.fullmatch(v) for v in found)
    }
    return [
        {key: int(v) if v is not None and key in whole else v for key, v in each.items()}
        for each in folders
    ]


def _find(given: str) -> Source:
    filesystem, path = _find_place(given)
    uri = filesystem.unstrip_protocol(path)
    kinds = ", ".join(FORMATS)

    def choose(base: str, listing: Listing, none: str) -> Source:
        if not listing.files:
            raise UsageError("; ".join((f"{given}: {none}", *listing.notes)))
        base = _find_base(base)
        refuse_lakes(filesystem, base, listing.files)
        return Source(given, uri, filesystem, base, listing.files, listing.notes)

    if filesystem.isfile(path):
        if suffix_of(path) not in FORMATS:
            raise UsageError(f"{given}: unknown suffix; expected one of {kinds}")
        return choose(posixpath.dirname(path), Listing((path,)), "")
    if filesystem.isdir(path):
        return choose(path, list_folder(filesystem, path), f"the folder holds no {kinds} file")
    if not MAGIC.search(path):
        raise UsageError(f"{given}: no such file or folder")
    return choose(*list_glob(filesystem, path), f"no {kinds} file matches")


def _find_place(given: str) -> tuple[Any, str]:
    """Return a filesystem and a path in it. Without a protocol, `::` is part of a local name."""
    if "://" in given:
        filesystem, path = cast(tuple[Any, str], url_to_fs(given))
        if given.startswith(_S3):  # whose client asks a silent endpoint again for many minutes
            await_s3(given, path)
    else:
        filesystem = fsspec.filesystem("file")
        path = filesystem._strip_protocol(given)
    filesystem.invalidate_cache()
    path = path.rstrip("/") or path
    if is_local(filesystem):
        # In the root's folder fsspec makes `//a` of `a`, and POSIX lets two slashes be.
        path = re.sub("^//", "/", posixpath.normpath(path))
    return filesystem, path


def _find_base(folder: str) -> str:
    """Return the folder above all `key=value` ones: a row is the same, whatever names its file."""
    while "=" in posixpath.basename(folder):
        folder = posixpath.dirname(folder)
    return folder


def _note_folders(
    source: Source, part: Columns, folders: dict[str, int | str | None], known: Sequence[str]
) -> tuple[str, ...]:
    """Return a line where a single file is given, and its folders say more than it seems to."""
    said = [f"{key}={folders[key]}" for key in folders if key in known and key not in part.names]
    if not said or not source.is_file:
        return ()
    return (f"{', '.join(said)} of each row comes from the folders that {source.given} is in",)


def _add_folders(
    part: Columns, folders: dict[str, int | str | None], known: Sequence[str]
) -> Columns:
    """Return a file's columns with those of its folders, which have names, and no types.

    What the file itself says, wins.
    """
    cells, labels, texts = dict(part.cells), part.labels, dict(part.texts)
    new = {key: value for key, value in folders.items() if key not in part.names}
    for key, value in new.items():
        if key in known:
            cells[key] = [value] * part.num_rows
        else:
            column = pa.nulls(part.num_rows) if value is None else pa.repeat(value, part.num_rows)
            labels = labels.append_column(key, column)
            texts[key] = column
    return replace(part, names=(*part.names, *new), cells=cells, labels=labels, texts=texts)


def _join(parts: list[Columns], source: Source) -> Columns:
    """Return several files' columns as one; a column that a file lacks is null there."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    known = dict.fromkeys(name for part in parts for name in part.cells)
    cells: dict[str, list[Any]] = {name: [] for name in known}
    for part in parts:
        for name, column in cells.items():
            column.extend(part.cells.get(name) or [None] * part.num_rows)
    texts = [part.texts for part in parts]
    labels = join_labels([part.labels for part in parts], texts, source.shown_files)
    files = tuple(
        Part(shown, part.num_rows, part.names)
        for shown, part in zip(source.shown_files, parts, strict=True)
    )
    return Columns(labels.num_rows, names, cells, labels.drop_columns([ROW_MARK]), {}, files)


def _reach(shown: str, action: Callable[[], T]) -> T:
    """Return what `action` returns, with a store's own errors as one clear line."""
    try:
        return action()
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"{shown}: no such file or folder") from error
    except PermissionError as error:
        raise UsageError(f"{shown}: not allowed to read it") from error
    except ImportError as error:
        raise UsageError(f"{shown}: its store needs a package: {error}") from error
    except Exception as error:  # every store's client raises kinds of its own
        reason = str(error).partition("\n")[0][:160]
        raise UsageError(f"{shown}: can't be read ({type(error).__name__}: {reason})") from error
