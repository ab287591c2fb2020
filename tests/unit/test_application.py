"""The endpoint as Serve's config files ask for it."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.application import EndpointConfig, build_endpoint
from pipeline.errors import UsageError


def test_a_variable_that_is_not_set_is_no_folder_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(UsageError, match=r"\$NOT_SET/online"):
        build_endpoint(EndpointConfig(output="$NOT_SET/online", insecure=True))
    assert not any(tmp_path.iterdir())


def test_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    build_endpoint(EndpointConfig(output="$HERE/online", insecure=True))
    assert (tmp_path / "online" / "run.json").exists()


@pytest.mark.parametrize("limit", ["max_queued", "max_per_minute"])
def test_a_limit_that_lets_nobody_in_is_refused(limit: str) -> None:
    with pytest.raises(ValidationError, match=limit):
        EndpointConfig.model_validate({"output": "out", "insecure": True, limit: 0})


def test_a_webhook_needs_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUSHES_WEBHOOK_SECRET", raising=False)
    config = EndpointConfig(
        output=str(tmp_path / "online"), insecure=True, webhook="https://example.com/hook"
    )
    with pytest.raises(UsageError, match="RUSHES_WEBHOOK_SECRET"):
        build_endpoint(config)
    assert not any(tmp_path.iterdir())
    monkeypatch.setenv("RUSHES_WEBHOOK_SECRET", "whsec_cnVzaGVzIHdlYmhvb2sgc2VjcmV0IG9mIHRlc3Rz")
    assert build_endpoint(config)
