"""The online endpoint for Serve's own config files, a RayService's among them.

`import_path: jobs.application:build_endpoint`, with the fields of `EndpointConfig` as `args`.
"""

# Serve reads the annotation of `build_endpoint` as it stands: it must be the class, not a string.

import logging
import os
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt

from cluster.pauses import pauses
from jobs.api.keys import ApiKeys
from jobs.recipes import DEFAULT, find_recipe
from jobs.serve import ServeCall, bind_endpoint, find_webhook
from pipeline.bucket import SetUpError
from pipeline.errors import UsageError
from pipeline.store import ObjectStore

STORE_WAIT_S = 600.0
"""How long storage may be away when a cluster starts: it may be set up beside it."""

_log = logging.getLogger(__name__)


class EndpointConfig(BaseModel):
    """What `rushes serve` is told by its options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str
    """Folder or `s3://` URI; environment variables in it are filled in."""
    recipe: str = DEFAULT
    overrides: tuple[str, ...] = ()
    keys: str | None = None
    """File with the SHA-256 of an API key on each line; also: RUSHES_API_KEYS."""
    insecure: bool = False
    aliases: tuple[str, ...] = ()
    max_queued: PositiveInt = 100
    max_per_minute: PositiveInt = 60
    webhook: str | None = None
    """URL that is told how each video and batch ends, signed by RUSHES_WEBHOOK_SECRET."""


def build_endpoint(config: EndpointConfig) -> Any:
    """Return the application.

    Raises:
        UsageError: no such recipe, model or key file, a variable of the output is not set, the
            webhook has no secret, or the output is another model's, or away for ten minutes.
    """
    output = os.path.expandvars(config.output)
    if "$" in output:
        raise UsageError(f"output {config.output!r}: this environment has no such variable")
    call = ServeCall(
        find_recipe(config.recipe, config.overrides),
        ObjectStore(output),
        ApiKeys.read(config.keys, os.environ.get("RUSHES_API_KEYS", ""), insecure=config.insecure),
        config.aliases,
        max_queued=config.max_queued,
        max_per_minute=config.max_per_minute,
        webhook=find_webhook(config.webhook),
    )
    _await_storage(call.store)
    return bind_endpoint(call)


def _await_storage(store: ObjectStore) -> None:
    """Wait for an object store that is away: Serve builds an application of a config only once.

    Raises:
        UsageError: it isn't what an output needs, or can't be reached for too long.
    """
    until = time.monotonic() + STORE_WAIT_S
    for pause_s in pauses():
        try:
            store.probe()
        except UsageError as error:
            cause = error.__cause__
            is_away = isinstance(cause, OSError) and not isinstance(cause, SetUpError)
            is_away = is_away and store.uri.startswith("s3://")
            if not is_away or time.monotonic() + pause_s > until:
                raise
            _log.warning("the endpoint waits for its storage: %s", error)
        else:
            return
        time.sleep(pause_s)
