"""Who is let in, and as whom."""

from __future__ import annotations

import hashlib
import os
import pickle
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


def lets_in(keys: ApiKeys, key: str) -> bool:
    try:
        return keys.identify(f"Bearer {key}") == digest(key)
    except ApiError:
        return False


def test_a_key_file_is_read_again(tmp_path: Path) -> None:
    (file := tmp_path / "keys").write_text(f"{digest('one')}\n{digest('two')}\n")
    keys = ApiKeys.read(str(file), "listed", look_every_s=0.0)
    assert lets_in(keys, "one")
    file.write_text(f"{digest('two')}\n{digest('new')}\n")
    found = {key: lets_in(keys, key) for key in ("one", "two", "new", "listed")}
    assert found == {"one": False, "two": True, "new": True, "listed": True}
    file.write_text("# nobody\n")
    assert not lets_in(keys, "two")
    assert lets_in(keys, "listed")


def test_what_a_shell_hands_over_is_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, digest("one").encode())
    os.close(writing)
    with os.fdopen(reading):
        keys = ApiKeys.read(f"/dev/fd/{reading}", "", look_every_s=0)
        for _ in range(2):
            assert keys.identify("Bearer one") == digest("one")


def test_a_key_file_is_not_read_for_every_call(tmp_path: Path) -> None:
    (file := tmp_path / "keys").write_text(digest("one"))
    keys = ApiKeys.read(str(file), "", look_every_s=3600.0)
    assert lets_in(keys, "one")
    file.write_text(digest("two"))
    assert lets_in(keys, "one")


@pytest.mark.parametrize("damage", [b"my-secret", b"\xff\xfe", b"0123", None])
def test_a_key_file_that_is_damaged_or_away_takes_no_key_back(
    damage: bytes | None, tmp_path: Path
) -> None:
    (file := tmp_path / "keys").write_text(digest("one"))
    keys = ApiKeys.read(str(file), "", look_every_s=0.0)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert lets_in(keys, "one")
    assert not lets_in(keys, "my-secret")
    file.write_text(digest("two"))
    assert (lets_in(keys, "one"), lets_in(keys, "two")) == (False, True)


def test_a_secret_that_kubernetes_changes_is_read_where_the_endpoint_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for version, key in enumerate(("one", "two")):
        Path(f"..{version}").mkdir()
        Path(f"..{version}", "keys").write_text(digest(key))
    Path("..data").symlink_to("..0")
    Path("keys").symlink_to("..data/keys")
    sent = pickle.loads(pickle.dumps(ApiKeys.read("keys", "", look_every_s=0.0)))
    monkeypatch.chdir("/")
    assert lets_in(sent, "one")
    (link := tmp_path / "..new").symlink_to("..1")
    link.rename(tmp_path / "..data")
    assert (lets_in(sent, "one"), lets_in(sent, "two")) == (False, True)
