"""A recipe's model: where its files are, what they are, and that they are the same everywhere.

A run finds its model once, and pins it: processes that load it later, on other nodes or after a
gang's loss, load the same or nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UnreachableError, UsageError
from pipeline.identity import digest
from pipeline.recipe import ModelSpec

# Weights are in components' folders. Beside them some repositories (Lightricks/LTX-2) have the same
# model again in single files.
CHECKPOINT_FILES = ("*/*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is fetched of a hub's repository."""
WEIGHT_SUFFIX = ".safetensors"
CONFIG_SUFFIXES = (".json", ".txt", ".model", ".jinja")
SAMPLE_BYTES, MAX_HEADER_BYTES = 4096, 100_000_000
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (
    errno.EACCES, errno.EPERM, errno.EROFS,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip
"""Why a cache's folder can't be written to until somebody changes it; other faults may pass."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_checkpoint(model: ModelSpec, files: Sequence[str] = CHECKPOINT_FILES) -> Path:
    """Return the local folder of a checkpoint, from the hub's cache or the hub for a hub id.

    From a hub only these `files` are fetched, names that may have `*` in them. A folder's path may
    be relative to where this process works.

    Raises:
        UsageError: the package, folder or hub id can't be found, the hub's cache can't be used, or
            the model is pinned and its files are others.
    """
    folder = _find(model, files)
    is_whole = files == CHECKPOINT_FILES
    if is_whole and model.files_digest and model.files_digest != _sample_files(folder):
        raise UsageError(
            f"model.checkpoint: {folder} on {socket.gethostname()} doesn't hold the files "
            "that were found at first; every node needs the same ones, unchanged until the end"
        )
    return folder


def pin_model(model: ModelSpec, folder: Path) -> ModelSpec:
    """Return a model as whoever loads it must find it, wherever and whenever that is.

    folder: where `resolve_checkpoint` found it, complete.
    """
    pinned = pin_place(model, folder)
    return pinned.model_copy(update={"files_digest": _sample_files(folder)})


def pin_place(model: ModelSpec, folder: Path) -> ModelSpec:
    """Return a model that is looked for in the place where it was found, though main moves on.

    A folder is named by its whole path, in which links stay: nodes may mount it elsewhere.
    """
    name = model.checkpoint
    if name.startswith("package:"):
        return model
    local = Path(name).expanduser()
    if local.is_dir():
        return model.model_copy(update={"checkpoint": str(local.absolute())})
    commit = COMMIT.fullmatch(folder.name)  # the hub's cache names snapshots so
    return model.model_copy(update={"revision": commit[0]}) if commit else model


def fingerprint_model(model: ModelSpec, checkpoint: Path) -> str:
    """Return the fingerprint of a checkpoint folder as this recipe loads it, 64 hex digits.

    It covers the content of every configuration file and of the weights in components' folders, and
    what the recipe changes in how they are loaded. The folder's place and its files' times don't
    count, nor do weights beside the components, which nothing loads: the same model again in single
    files. A hub snapshot's files are links to blobs that are named by their hash: those are not
    read again.

    Raises:
        UsageError: the folder is missing or holds no safetensors weights.
    """
    if not checkpoint.is_dir():
        raise UsageError(
            f"model.checkpoint: no folder at {checkpoint}; "
            "give a folder in diffusers format or a hub id that has been downloaded"
        )
    if not any(path.suffix == WEIGHT_SUFFIX for path in _list_files(checkpoint)):
        raise UsageError(
            f"model.checkpoint: {checkpoint} holds no *.safetensors weights in its components' "
            "folders; only safetensors checkpoints in diffusers format are loaded"
        )
    return digest({"files": _map_files(checkpoint, _hash_file), "load": model.loading})


def _find(model: ModelSpec, files: Sequence[str]) -> Path:
    name = model.checkpoint
    if name.startswith("package:"):
        module, _, folder = name.removeprefix("package:").partition("/")
        try:
            return Path(str(resources.files(module))) / folder
        except ModuleNotFoundError as error:
            raise UsageError(f"model.checkpoint: no package {module!r} for {name!r}") from error
    local = Path(name).expanduser()
    if local.is_dir():
        return local.resolve()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        whole = "" if local.is_absolute() else f", which is {local.absolute()}"
        raise UsageError(f"model.checkpoint: no folder at {name}{whole}")
    return _download(name, model.revision, files)


def _download(repo: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import (
        constants,
        snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    )
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if _is_of(error, constants.HF_HUB_CACHE):
            raise _describe_cache(repo, constants.HF_HUB_CACHE, error) from error
        answer = getattr(error, "response", None)  # none of those that come before any answer
        is_refused = answer is not None and answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR
        raise (UsageError if is_refused else UnreachableError)(
            f"model.checkpoint: {repo!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}); download it first, or give a folder"
        ) from error


def _is_of(error: OSError, cache: str) -> bool:
    """Return whether an error is the cache's own: of a folder on its path, or of its disk."""
    if error.filename is None:
        return error.errno in FULL
    at = Path(os.fsdecode(error.filename))
    return at.is_relative_to(cache) or Path(cache).is_relative_to(at)


def _describe_cache(repo: str, cache: str, error: OSError) -> UsageError:
    """Return how a fault of the hub's cache is told; what may pass, another try may not meet."""
    return (UsageError if error.errno in CLOSED else UnreachableError)(
        f"model.checkpoint: the hub's cache {cache} on {socket.gethostname()} can't hold {repo!r}: "
        f"{error}; expected a folder with room, which user {os.getuid()} may write to: "
        "mend it, or name another by HF_HOME"
    )


def _list_files(checkpoint: Path) -> list[Path]:
    """Return the files of a checkpoint; a component's folder may be a link to another's."""
    linked = (each for each in checkpoint.iterdir() if each.is_symlink() and each.is_dir())
    return sorted(
        path
        for folder in (checkpoint, *linked)
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix in (WEIGHT_SUFFIX, *CONFIG_SUFFIXES)
        and (path.suffix != WEIGHT_SUFFIX or path.parent != checkpoint)
    )


def _map_files(checkpoint: Path, read: Callable[[Path], str]) -> dict[str, str]:
    files = _list_files(checkpoint)
    names = [path.relative_to(checkpoint).as_posix() for path in files]
    with ThreadPoolExecutor(max_workers=4) as threads:
        return dict(zip(names, threads.map(read, files), strict=True))


def _sample_files(checkpoint: Path) -> str:
    """Return a digest of a checkpoint's files that is soon made, as often as one is loaded.

    Of weights it reads a little from the midst of each: training changes all of a layer's values.
    """
    return digest(_map_files(checkpoint, _sample_file))


def _sample_file(path: Path) -> str:
    with path.open("rb") as file:
        if path.suffix != WEIGHT_SUFFIX:
            return hashlib.file_digest(file, "sha256").hexdigest()
        hashed = hashlib.sha256(str(path.stat().st_size).encode())
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # who loads it tells more
            for sample in _read_samples(file):
                hashed.update(sample)
        return hashed.hexdigest()


def _read_samples(file: BinaryIO) -> Iterator[bytes]:
    """Yield a safetensors file's header, and up to `SAMPLE_BYTES` of each weight.

    Source: the format's description, https://huggingface.co/docs/safetensors.
    """
    size_bytes = int.from_bytes(file.read(8), "little")
    if size_bytes > MAX_HEADER_BYTES:
        return
    header = file.read(size_bytes)
    yield header
    start = file.tell()
    weights: dict[str, Any] = json.loads(header)
    weights.pop("__metadata__", None)
    for begin, end in sorted(each["data_offsets"] for each in weights.values()):
        taken = min(end - begin, SAMPLE_BYTES)
        file.seek(start + begin + (end - begin - taken) // 2)
        yield file.read(taken)


def _hash_file(path: Path) -> str:
    """Return a file's SHA-256, from the name of its hub blob where it has one."""
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64 and not set(blob) - set("0123456789abcdef"):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
