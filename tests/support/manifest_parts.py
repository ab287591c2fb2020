"""Parts of an overlay's documents, which tests change to see that a rule finds it."""

from __future__ import annotations

from typing import Any

from tests.support.manifests import Document, find_kind


def of_kind(documents: list[Document], kind: str, name: str = "") -> Document:
    return next(
        each for each in find_kind(documents, kind) if name in ("", each["metadata"].get("name"))
    )


def job_of(documents: list[Document]) -> dict[str, Any]:
    return of_kind(documents, "RayCronJob")["spec"]["jobTemplate"]


def cluster_of(documents: list[Document]) -> dict[str, Any]:
    return job_of(documents)["rayClusterSpec"]


def head_of(documents: list[Document]) -> dict[str, Any]:
    return cluster_of(documents)["headGroupSpec"]["template"]["spec"]


def container_of(documents: list[Document]) -> dict[str, Any]:
    return head_of(documents)["containers"][0]


def clock_of(documents: list[Document]) -> dict[str, Any]:
    return of_kind(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
