"""An AWS configuration or login that is no good: one line says so, before anything is asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from jobs.cli import ExitCode
from pipeline.errors import UsageError
from pipeline.store import ObjectStore
from tests.support.command import rushes

LOGIN = """
[profile corp]
sso_session = corp
sso_account_id = 123456789012
sso_role_name = ads
region = us-east-1
[sso-session corp]
sso_start_url = https://corp.example/start
sso_region = us-east-1
"""
LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that AWS is configured by: an empty one, and nothing in the environment."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").touch()
    return tmp_path / "config"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_PROFILE", "nope", r"profile \(nope\) could not be found"),
        ("AWS_MAX_ATTEMPTS", "x", "AWS_MAX_ATTEMPTS: invalid literal"),
        ("AWS_MAX_ATTEMPTS", "0", "max_attempts"),
        ("AWS_ACCESS_KEY_ID", "half of it", "missing: AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_setting_that_is_no_good_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^s3://ads/a: can't be read: .*{said}") as told:
        ObjectStore("s3://ads/a").probe(write=False)
    assert str(told.value).endswith("; check the AWS configuration and login")


def test_a_name_that_no_bucket_has_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nvalid bucket name") as told:
        ObjectStore("s3://my bucket/a").probe(write=False)
    assert "\n" not in str(told.value)
    assert "AWS configuration" not in str(told.value)


def test_a_configuration_that_cannot_be_read_is_named(settings: Path) -> None:
    settings.write_text("[x")
    for ask in (ObjectStore.probe, lambda store: store.locate_for_arrow("a")):
        with pytest.raises(UsageError, match=r"parse config file: .*; check the AWS conf"):
            ask(ObjectStore("s3://ads/a"))


def test_a_login_that_has_expired_is_told_in_one_line(settings: Path, tmp_path: Path) -> None:
    settings.write_text(LOGIN)
    cache = tmp_path / ".aws/sso/cache"
    cache.mkdir(parents=True)
    token = {"accessToken": "x", "expiresAt": LONG_AGO}
    (cache / f"{hashlib.sha1(b'corp').hexdigest()}.json").write_text(json.dumps(token))
    refused = rushes("status", "s3://ads/a", cwd=tmp_path, AWS_PROFILE="corp")
    assert refused.returncode == ExitCode.USAGE
    (line,) = refused.stderr.splitlines()
    assert "oken has expired" in line
    assert line.endswith("; check the AWS configuration and login")
