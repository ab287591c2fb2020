"""`rushes serve`: the online endpoint on Ray Serve, until it is told to stop."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray import serve
from ray._private import worker as ray_worker
from ray.exceptions import RayError
from ray.serve.context import _get_global_client  # pyright: ignore[reportPrivateUsage]
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.answers import BatchState, Refusal, VideoState
from cluster.demand import INGRESS_CPUS, beside_encode, describe_shortage
from cluster.loss import UNSAVED, is_gone, wait_for_loss
from cluster.metrics import read_exported
from cluster.online import DISPATCHER, MANY, bind_dispatcher
from cluster.session import check_cluster, ray_session
from cluster.stages import RenderSpec
from cluster.webhook import WebhookTarget
from jobs.api.endpoint import Endpoint
from jobs.api.errors import UnavailableError
from jobs.api.job import JobReader
from jobs.api.keys import ApiKeys
from jobs.api.lines import Lines
from jobs.api.proxy import IMPORT_PATH
from jobs.api.routes import make_app
from jobs.plan import find_model
from jobs.run import RunBrokenError
from jobs.stop import stop_signals
from pipeline.batches import BatchJob, BatchLimits
from pipeline.documents import describe_output
from pipeline.errors import UsageError
from pipeline.identity import digest_renderer
from pipeline.inbox import VideoJob
from pipeline.inputs import Inputs
from pipeline.lease import read_lease
from pipeline.ledger import Ledger
from pipeline.recipe import Recipe
from pipeline.store import ObjectStore
from pipeline.uploads import FileRecord

APP = "rushes"
LOGGING = {"encoding": "JSON"}
"""Serve's lines, in files: each with its request's id."""
BATCHES = 1
"""How many `rushes render` a local cluster has room for beside the endpoint, at a time."""
CLOSE_TIMEOUT_S = 30.0
DRAIN_S, DRAIN_POLL_S = 5.0, 0.5
"""How long calls that are under way have for their answers once the endpoint ends: whoever sends a
body slowly, or not at all, is not waited for."""
CLOSE_POLL_S = 0.5


@dataclass(frozen=True)
class ServeCall:
    """What an endpoint is."""

    recipe: Recipe
    store: ObjectStore
    """The output: resolved here, since a cluster's processes have working folders of their own."""
    keys: ApiKeys
    aliases: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    max_queued: int = 100
    """Videos that one key may have under way."""
    max_per_minute: int = 60
    """Videos that one key may ask for in any 60 seconds."""
    webhook: WebhookTarget | None = None
    """Who is told how a video or a batch ends."""
    limits: BatchLimits = field(default_factory=BatchLimits)


def serve_endpoint(call: ServeCall, address: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; then save what is under way and give the output back.

    Raises:
        UsageError: the call is wrong.
        RunBrokenError: its node of the cluster is lost; what was accepted is kept.
    """
    store = call.store
    store.locate_for_arrow("run.json")
    check_cluster(call.recipe, address)
    if not address:
        _check_port(call.host, call.port)
        os.environ.setdefault("RAY_enable_metrics_collection", "1")  # for GET /metrics
        os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", IMPORT_PATH)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    app = bind_endpoint(call)
    held = read_lease(store)
    if held and not held.is_over():
        say(f"another run has not given {store.uri} back: {held}; waiting for its end")
    with stop_signals(), ray_session(call.recipe, address, runs=1 + BATCHES):
        is_ours = is_lost = is_stopped = False
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": call.host, "port": call.port},
                logging_config=LOGGING,
            )
            _check_serve(call, store.uri)
            is_ours = True
            serve.run(app, name=APP, route_prefix="/", logging_config=LOGGING)
            if short := describe_shortage(call.recipe):
                say(short)
            place = f"[{call.host}]" if ":" in call.host else call.host
            say(f"{call.recipe.name} is ready: base_url=http://{place}:{call.port}/v1")
            say(f"its page: http://{place}:{call.port}/")
            say(f"videos go to {store.uri}; Ctrl-C ends it")
            say(f"its log, of every call: {_find_logs()}")
            if not address:
                here = cast(Any, ray).get_runtime_context().gcs_address
                say(f"a batch on its gangs: RAY_AUTH_MODE=token rushes render ... --address {here}")
            wait_for_loss(say)
            is_ours, is_lost = False, True
        except KeyboardInterrupt:
            is_stopped = True
            say(f"stopping: saving what is under way, up to {call.recipe.checkpoint.grace_s:.0f} s")
        finally:
            # Serve itself ends with a cluster of ours; on another's it may have more applications.
            if is_ours:
                is_saved = _close(call.recipe.checkpoint.grace_s + CLOSE_TIMEOUT_S)
                if is_stopped and not is_saved:
                    say(UNSAVED)
    if is_lost:
        raise RunBrokenError("Ray is gone from here; the same command takes up what was accepted")


def bind_endpoint(call: ServeCall) -> Any:
    """Return the application: the ingress, and behind it the dispatcher with its stages.

    Raises:
        UsageError: the model can't be found or can't be cut as gangs ask; the output is another's.
    """
    recipe, fingerprint = find_model(call.recipe)
    identity = describe_output(recipe, fingerprint)
    Ledger(call.store).open_output(identity)
    renderer = digest_renderer(fingerprint, recipe.finish)
    dispatcher = bind_dispatcher(
        RenderSpec(recipe, fingerprint),
        call.store,
        identity,
        call.max_queued,
        call.max_per_minute,
        call.webhook,
        Lines(JobReader(recipe, renderer, Inputs(call.store), call.aliases)),
        call.limits,
    )
    ingress = cast(Any, serve.deployment)(
        cast(Any, serve.ingress)()(Ingress),
        name="Ingress",
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        ray_actor_options=beside_encode(recipe, INGRESS_CPUS),
    )
    return ingress.bind(dispatcher, call, renderer)


def find_webhook(url: str | None) -> WebhookTarget | None:
    """Return who is told of ends, with the secret that this environment has for it.

    Raises:
        UsageError: no such URL, or no such secret.
    """
    return WebhookTarget(url, os.environ.get("RUSHES_WEBHOOK_SECRET", "")) if url else None


class Ingress:
    """Answers HTTP calls; holds nothing of its own."""

    def __init__(self, dispatcher: DeploymentHandle[Any], call: ServeCall, renderer: str) -> None:
        """Hold what calls are answered from."""
        ledger = Ledger(call.store)
        desk = RemoteDesk(dispatcher)
        self._endpoint = Endpoint(
            desk, call.recipe, renderer, ledger, call.keys, call.aliases, call.limits
        )

    def __serve_build_asgi_app__(self) -> Any:
        """Return what Serve gives calls to."""
        return make_app(self._endpoint)


class RemoteDesk:
    """A dispatcher by its handle.

    Every method raises UnavailableError where the dispatcher's process is gone.
    """

    def __init__(self, dispatcher: DeploymentHandle[Any]) -> None:
        """Hold the handle."""
        self._dispatcher: Any = dispatcher
        self.files = RemoteFiles(self._dispatcher.call_files)
        self.batches = RemoteBatches(self._dispatcher.call_batches)

    async def submit(self, job: VideoJob) -> VideoState | Refusal:
        """Take a job in, or refuse it: its owner has reached a limit."""
        return await _ask(self._dispatcher.submit, job)

    async def find_repeated(self, owner: str, idempotency_key: str) -> VideoState | None:
        """Return how the video goes that an owner's key stands for."""
        return await _ask(self._dispatcher.find_repeated, owner, idempotency_key)

    async def find_refusal(self, owner: str, idempotency_key: str | None) -> Refusal | None:
        """Return why a call would be refused now, which counts for nothing."""
        return await _ask(self._dispatcher.find_refusal, owner, idempotency_key)

    async def find(self, owner: str, video_id: str) -> VideoState | None:
        """Return how an owner's video goes."""
        return await _ask(self._dispatcher.find, owner, video_id)

    async def list(
        self, owner: str, after: str | None, limit: int, *, newest_first: bool
    ) -> tuple[list[VideoState], bool] | None:
        """Return a page of an owner's videos."""
        return await _ask(self._dispatcher.list, owner, after, limit, newest_first=newest_first)

    async def delete(self, owner: str, video_id: str) -> bool:
        """Forget an owner's video."""
        return await _ask(self._dispatcher.delete, owner, video_id)

    async def is_ready(self) -> bool:
        """Return whether clips can be made at once."""
        return await _ask(self._dispatcher.is_ready)

    async def read_metrics(self) -> bytes:
        """Return what this replica's node exports for Prometheus."""
        try:
            return await read_exported()
        except OSError as error:
            raise UnavailableError from error


class RemoteFiles:
    """A dispatcher's files by a method of its handle."""

    def __init__(self, call: Any) -> None:
        """Hold the method."""
        self._call = call

    async def add(self, record: FileRecord) -> FileRecord | Refusal:
        """Make an uploaded content a file, or refuse it."""
        return await _ask(self._call, "add", record)

    async def find(self, owner: str, file_id: str) -> FileRecord | None:
        """Return an owner's file."""
        return await _ask(self._call, "find", owner, file_id)

    async def list(
        self, owner: str, after: str | None, limit: int, purpose: str | None, *, newest_first: bool
    ) -> tuple[list[FileRecord], bool] | None:
        """Return a page of an owner's files."""
        newest = {"newest_first": newest_first}
        return await _ask(self._call, "list", owner, after, limit, purpose, **newest)

    async def delete(self, owner: str, file_id: str) -> bool:
        """Remove an owner's file."""
        return await _ask(self._call, "delete", owner, file_id)


class RemoteBatches:
    """A dispatcher's batches by a method of its handle."""

    def __init__(self, call: Any) -> None:
        """Hold the method."""
        self._call = call

    async def create(self, job: BatchJob) -> BatchState | Refusal | None:
        """Take a batch in, or refuse it."""
        return await _ask(self._call, "create", job)

    async def find_repeated(self, owner: str, idempotency_key: str) -> BatchState | None:
        """Return how the batch goes that an owner's key stands for."""
        return await _ask(self._call, "find_repeated", owner, idempotency_key)

    async def find(self, owner: str, batch_id: str) -> BatchState | None:
        """Return how an owner's batch goes."""
        return await _ask(self._call, "find", owner, batch_id)

    async def list(
        self, owner: str, after: str | None, limit: int
    ) -> tuple[list[BatchState], bool] | None:
        """Return a page of an owner's batches."""
        return await _ask(self._call, "list", owner, after, limit)

    async def cancel(self, owner: str, batch_id: str) -> BatchState | None:
        """Call an owner's batch off."""
        return await _ask(self._call, "cancel", owner, batch_id)


async def _ask(method: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return await method.remote(*args, **kwargs)
    except (TimeoutError, RayError, RayServeException) as error:
        logging.getLogger("ray.serve").warning("the dispatcher gives no answer: %s", error)
        raise UnavailableError from error


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port}: can't be listened on ({error.strerror}); choose another"
        ) from error


def _check_serve(call: ServeCall, output: str) -> None:
    """Check that Serve, which a cluster may have had before, is there for this call.

    An endpoint of this output, whose command has died, is taken over.

    Raises:
        UsageError: it listens elsewhere, or serves another output.
    """
    here = cast(Any, _get_global_client()).http_config
    if (here.host, here.port) != (call.host, call.port):
        raise UsageError(
            f"--host {call.host} --port {call.port}: this cluster's Ray Serve listens on --host "
            f"{here.host} --port {here.port} already; give those, or end it: serve shutdown"
        )
    if APP not in serve.status().applications:
        return
    try:
        handle: Any = serve.get_deployment_handle(DISPATCHER, APP)
        other = handle.find_output.remote().result(timeout_s=CLOSE_TIMEOUT_S)
    except TimeoutError:
        other = "an output that it doesn't name in time"
    except (RayError, RayServeException, KeyError):
        return  # what is left of one that ended
    if other != output:
        raise UsageError(
            f"this cluster has an endpoint already, for {other}; serve {output} on another cluster"
        )


def _find_logs() -> str:
    """Return the folder in which Serve writes, on the machine of whoever does."""
    node = getattr(cast(Any, ray_worker).global_worker, "node", None)  # none by Ray's client
    return f"{node.get_logs_dir_path() if node else 'logs of the session on the head'}/serve"


def _close(timeout_s: float) -> bool:
    """Have the dispatcher save what is under way while there is a cluster; tell whether it has."""
    saved = threading.Event()
    closing = threading.Thread(target=_close_dispatcher, args=(timeout_s, saved), daemon=True)
    closing.start()
    try:
        while closing.is_alive() and not is_gone():
            closing.join(CLOSE_POLL_S)
    except KeyboardInterrupt:  # again: nothing more is saved
        serve.delete(APP, _blocking=False)
        raise
    return saved.is_set()


def _close_dispatcher(timeout_s: float, saved: threading.Event) -> None:
    try:
        handle: Any = serve.get_deployment_handle(DISPATCHER, APP)
        handle.close.remote().result(timeout_s=timeout_s)
        saved.set()
    except (RayError, RayServeException, TimeoutError, KeyError) as error:
        logging.getLogger("ray.serve").warning("the dispatcher did not end in order: %s", error)
    finally:
        with suppress(RayError, RayServeException):  # there may be no cluster any more
            serve.delete(APP)
