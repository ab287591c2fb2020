"""As much of the Kubernetes API as kubectl needs to get one night and create a job, on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.manifests import K8S, KUBECTL

NAMESPACE = "rushes"
_GROUP = {"groupVersion": "ray.io/v1", "version": "v1"}
_JOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
_PATCH = {
    "x-kubernetes-group-version-kind": {"group": "ray.io", "version": "v1", "kind": "RayJob"},
    "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
    "responses": {},
}
_FIXED = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "ray.io", "versions": [_GROUP], "preferredVersion": _GROUP}],
    },
    "/apis/ray.io/v1": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "ray.io/v1",
        "resources": [
            {"name": f"{kind.lower()}s", "singularName": kind.lower(), "namespaced": True,
             "kind": kind, "verbs": ["create", "get"]}
            for kind in ("RayJob", "RayCronJob")
        ],
    },
    "/openapi/v3": {"paths": {"apis/ray.io/v1": {"serverRelativeURL": "/openapi/v3/ray"}}},
    "/openapi/v3/ray": {
        "openapi": "3.0.0",
        "info": {"title": "ray", "version": "1"},
        "paths": {f"{_JOBS}/{{name}}": {"patch": _PATCH}},
    },
}  # fmt: skip


@dataclass(frozen=True)
class KubeApi:
    """A server that runs; `created` grows."""

    config: Path
    """For KUBECONFIG."""
    created: list[Any] = field(default_factory=list[Any])


@contextmanager
def serve_kube_api(night: dict[str, Any], folder: Path) -> Iterator[KubeApi]:
    """Serve one RayCronJob, and take RayJobs in."""
    api = KubeApi(folder / "kubeconfig")
    name = night["metadata"]["name"]
    answers = {**_FIXED, f"/apis/ray.io/v1/namespaces/{NAMESPACE}/raycronjobs/{name}": night}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            self._send(200 if answer else 404, answer or {"kind": "Status", "code": 404})

        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path.startswith(_JOBS)
            api.created.append(job)
            named = {**job["metadata"], "name": f"{job['metadata']['generateName']}1"}
            self._send(201, {**job, "metadata": named})

        def _send(self, code: int, answer: Any) -> None:
            body = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        ],
        "contexts": [{"name": "c", "context": {"cluster": "c", "namespace": NAMESPACE}}],
        "current-context": "c",
    }
    api.config.write_text(json.dumps(config))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()


def start_night(
    night: dict[str, Any], folder: Path, name: str = "night", **given: str
) -> tuple[int, list[Any]]:
    """Call `start-night` against an API that has a night; return how it ended, what it created."""
    assert KUBECTL
    with serve_kube_api(night, folder) as api:
        path = f"{Path(KUBECTL).parent}:{os.environ['PATH']}"
        config = {"KUBECONFIG": str(api.config), "HOME": str(folder), "PATH": path}
        call = [K8S / "bin" / "start-night", name]
        done = subprocess.run(call, env=os.environ | config | given, check=False)
    return done.returncode, api.created
