"""Who is let in, and as whom."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jobs.api.keys import ApiKeys
from jobs.api.wire import ApiError
from pipeline.errors import UsageError


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_each_key_is_an_owner_of_its_own() -> None:
    keys = ApiKeys.read(None, " one, two ,")
    owners = {keys.identify(f"Bearer {key}") for key in ("one", "two")}
    assert owners == {digest("one"), digest("two")}


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer three", "one", "Basic one", "Bearer "]
)
def test_whoever_has_no_key_is_refused(sent: str | None) -> None:
    keys = ApiKeys.read(None, "one")
    with pytest.raises(ApiError) as refused:
        keys.identify(sent)
    assert refused.value.status == 401
    assert refused.value.body.code == "invalid_api_key"


def test_a_file_holds_digests_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{digest('one')}  -\n\n{digest('two')} # the shop's\n")
    keys = ApiKeys.read(str(file), "")
    assert keys.identify("bearer two") == digest("two")


def test_a_key_in_the_clear_in_the_file_is_told_of_without_showing_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{digest('one')}\nmy-secret\n")
    with pytest.raises(UsageError, match="line 2 is no SHA-256") as refused:
        ApiKeys.read(str(file), "")
    assert "my-secret" not in str(refused.value)


def test_no_keys_at_all_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--insecure"):
        ApiKeys.read(None, "")
    with pytest.raises(UsageError, match="can't be read"):
        ApiKeys.read(str(tmp_path / "none"), "", insecure=True)
    assert ApiKeys.read(None, "", insecure=True).identify(None) == ""


def test_keys_are_asked_for_where_there_are_any() -> None:
    with pytest.raises(ApiError):
        ApiKeys.read(None, "one", insecure=True).identify(None)
