"""The ledger's documents: what an output is, what became of a clip, and how rows are counted."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Container, Iterator
from datetime import UTC, datetime
from importlib import metadata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UnfitRequestError, UsageError
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

FORMAT = 1
PACKAGES = ("rushes", "torch", "diffusers", "transformers", "ray", "av")

Status = Literal["committed", "failed", "rejected", "remaining"]
ClipId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Attempt = Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{8,80}$")]
BATCH_ID = r"batch_[0-9a-f]{44}"
BatchId = Annotated[str, Field(pattern=rf"^{BATCH_ID}$")]


_D = TypeVar("_D", bound="Document")


class Document(BaseModel):
    """A JSON object of the store; fields that a later version added are passed over."""

    model_config = ConfigDict(frozen=True)


class OutputIdentity(Document):
    """What an output is: `run.json`. Once a clip has come, its model and finish never change."""

    format: int = FORMAT
    model: str
    model_fingerprint: str
    loading: dict[str, Any] | None = None
    """How the recipe loads the model, a part of its fingerprint; an earlier version didn't say."""
    finish: dict[str, Any]
    recipe: str
    versions: dict[str, str] = {}
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Artifact(Document):
    """One uploaded file, as it was read back."""

    key: str
    sha256: str
    size_bytes: int


class CommitDraft(Document):
    """A rendered clip that is not uploaded yet."""

    clip_id: ClipId
    attempt: Attempt
    request: RenderRequest
    width: int
    height: int
    num_frames: int
    fps: float
    duration_s: float
    has_audio: bool = False
    model: str
    model_fingerprint: str
    layout: str
    gang: str
    attempts: int = 1
    """Attempts that the clip took in this run, this one included."""
    timings: dict[str, float] = {}
    """Seconds by stage: encode, denoise, develop; `commit_clip` adds upload."""
    device_seconds: float = 0.0


class Commit(CommitDraft):
    """A clip that is done."""

    video: Artifact
    poster: Artifact
    committed_at: datetime
    epoch: int | None = None
    """Of the run that committed it; None where an earlier version did, or no run's."""


class Failure(Document):
    """An attempt at a clip that was given up."""

    clip_id: ClipId
    attempt: Attempt
    stage: str
    reason: str
    code: str | None = None
    """What is wrong with the request, where that is at fault."""
    chain: tuple[str, ...] = ()
    """What happened at each attempt, oldest first."""
    attempts: int = 1
    failed_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Checkpoint(Document):
    """Denoising that is saved, to go on from; its payload is packed state."""

    clip_id: ClipId
    attempt: Attempt
    kind: Literal["snapshot", "latents"]
    """A session between two steps, or the finished latents."""
    step: int
    model_fingerprint: str
    layout: str
    device_seconds: float
    """What denoising took so far, times the ranks that it took."""
    denoise_s: float = 0.0
    """What it took so far; an earlier version didn't say."""
    payload: Artifact
    saved_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class RowCounts(Document):
    """How many rows ended how; each row is counted once."""

    rows: int = 0
    committed: int = 0
    failed: int = 0
    rejected: int = 0
    remaining: int = 0


class TableStatus(RowCounts):
    """One table's rows."""

    name: str
    source: str | None = None
    """The URI that its rows came from; None where an earlier version saved them."""


class OutputStatus(RowCounts):
    """All rows of an output, and table by table. Clips are counted without repeats."""

    clips: int = 0
    clips_committed: int = 0
    tables: tuple[TableStatus, ...] = ()


def describe_output(recipe: Recipe, model_fingerprint: str) -> OutputIdentity:
    """Return the identity of the output that this recipe and these weights make."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return OutputIdentity(
        model=recipe.model.checkpoint,
        model_fingerprint=model_fingerprint,
        loading=recipe.model.loading,
        finish=recipe.finish.model_dump(),
        recipe=recipe.name,
        versions=versions,
    )


def tell_apart(found: OutputIdentity, wanted: OutputIdentity) -> list[str]:
    """Return in what an output differs from the one that a run wants to write."""
    differing: list[str] = []
    if found.format != wanted.format:
        differing.append(f"format is {found.format}, this version writes {wanted.format}")
    if found.model_fingerprint != wanted.model_fingerprint:
        differing.append(
            f"model fingerprint is {found.model_fingerprint} ({found.model}), "
            f"this run's is {wanted.model_fingerprint} ({wanted.model})"
        )
        differing += _tell_loadings_apart(found.loading, wanted.loading)
    for key in sorted(found.finish.keys() | wanted.finish.keys()):
        there, here = found.finish.get(key), wanted.finish.get(key)
        if there != here:
            differing.append(f"finish.{key} is {there!r}, this run's is {here!r}")
    return differing


def _tell_loadings_apart(
    found: dict[str, Any] | None, wanted: dict[str, Any] | None
) -> Iterator[str]:
    if found is None or wanted is None:
        return
    keys = [key for key in wanted if found.get(key) != wanted[key]]
    for key in keys:
        yield f"model.{key} is {found.get(key)!r}, this run's is {wanted[key]!r}"
    if not keys:
        yield "the model's files are others"


def new_attempt() -> str:
    """Return a name for one attempt at a clip: unguessable, and sortable by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(8)}"


def new_id(prefix: str) -> str:
    """Return an id that sorts by time, to the millisecond, and can't be guessed: 44 hex digits."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(16)}"


def derive_id(prefix: str, parent: str, name: str) -> str:
    """Return the id, always the same, of something by its name within what has the id `parent`.

    It sorts by its parent's time, and only who knows the parent's id can make it.
    """
    digest = hashlib.sha256(f"{parent}/{name}".encode()).hexdigest()
    return f"{prefix}{parent[-44:-32]}{digest[:32]}"


def read_document(store: ObjectStore, kind: type[_D], key: str) -> _D:
    """Return the document that an output has at `key`.

    Raises:
        FileNotFoundError: there is none.
        UsageError: it is damaged.
    """
    content = store.read(key)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        says = f"{place}: {first['msg']}" if place else first["msg"]
        raise refuse_content(store, key, says) from error


def refuse_content(
    store: ObjectStore, key: str, says: str, do: str = "restore it or move it away"
) -> UsageError:
    """Return the error for an object that is damaged; `says` tells how, `do` what to do."""
    return UsageError(f"{store.locate(key)} is not what rushes writes there: {says}; {do}")


def describe_failure(
    clip_id: str,
    stage: str,
    error: Exception | str,
    chain: tuple[str, ...] = (),
    attempts: int = 1,
) -> Failure:
    """Return the failure of a clip in `stage`, its reason in one line."""
    code = error.code if isinstance(error, UnfitRequestError) else None
    text = str(error) if code or isinstance(error, str) else f"{type(error).__name__}: {error}"
    reason = " ".join(text.split())[:500]
    return Failure(
        clip_id=clip_id,
        attempt=new_attempt(),
        stage=stage,
        reason=reason,
        code=code,
        chain=(*chain, reason),
        attempts=attempts,
    )


def row_status(
    clip_id: str | None, reject: str | None, committed: Container[str], failed: Container[str]
) -> Status:
    """Return the one state of a row, from the ids of committed and failed clips."""
    if reject is not None:
        return "rejected"
    if clip_id is not None and clip_id in committed:
        return "committed"
    return "failed" if clip_id is not None and clip_id in failed else "remaining"
