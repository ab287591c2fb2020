"""`rushes serve` as a test's user would start it, and clients for it."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import (
    end_process,
    find_children,
    find_named,
    is_alive,
    start_rushes,
    wait_until,
)

MINE, OTHERS, BUSY = "my-key", "their-key", "busy-key"
READY_S, CLIP_S = 240.0, 120.0
PROMPT = "a red ball moving left"
LONG = {"num_inference_steps": "100"}
MAX_QUEUED, MAX_PER_MINUTE = 30, 100
SHARED = ("--set", "checkpoint.every_s=0.5")
"""What a batch must set, too, for the endpoint's pool."""
ENDED = ("completed", "failed", "expired", "cancelled")
WEBHOOK_SECRET = "whsec_cnVzaGVzIHdlYmhvb2sgc2VjcmV0IG9mIHRlc3Rz"


def make_lines(*bodies: Any) -> bytes:
    """Return a batch's file with a line for each body: `line 0` and so on."""
    lines = [
        {"custom_id": f"line {number}", "method": "POST", "url": "/v1/videos", "body": body}
        for number, body in enumerate(bodies)
    ]
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def create_batch(client: OpenAI, *bodies: Any, metadata: Any = None) -> tuple[Any, str]:
    """Return a batch of a line for each body, just created, and the id of its file."""
    file = client.files.create(file=("batch.jsonl", make_lines(*bodies)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/videos", completion_window="24h", metadata=metadata
    )
    return batch, file.id


def read_answers(client: OpenAI, file_id: str) -> list[Any]:
    """Return what a batch's output has on each line."""
    return [json.loads(line) for line in client.files.content(file_id).read().splitlines()]


class Listener:
    """A user's server, in this process, that hears how videos end."""

    def __init__(self) -> None:
        heard = self.heard = list[tuple[str, str]]()
        """Each video's or batch's id and what its end was said to be, as often as it was told."""
        reader = OpenAI(api_key="none", webhook_secret=WEBHOOK_SECRET)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                event: Any = reader.webhooks.unwrap(body, dict(self.headers))
                heard.append((event.data.id, event.type))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def read(self) -> dict[str, str]:
        """Return the event of each video, as the official client reads it from what was signed."""
        return dict(self.heard)

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Server:
    """`rushes serve` in processes of its own, on one output, as often as it is started."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.folder = folder
        self.output = folder / "online"
        digests = [hashlib.sha256(key.encode()).hexdigest() for key in (MINE, OTHERS, BUSY)]
        (folder / "keys").write_text("\n".join(digests))
        self.listener = Listener()
        self.process: subprocess.Popen[str]
        self.cluster: str
        self.logs: Path
        self._stack = ExitStack()
        self._seen = set[psutil.Process]()

    def start(self) -> None:
        call = ("serve", "-o", "online", "--port", str(self.port), "--keys", "keys",
                "--alias", "sora-2", "--max-queued", str(MAX_QUEUED),
                "--max-per-minute", str(MAX_PER_MINUTE), "--webhook", self.listener.url,
                *SHARED, "--set", "lease.limit_s=6")  # fmt: skip
        running = start_rushes(*call, cwd=self.folder, RUSHES_WEBHOOK_SECRET=WEBHOOK_SECRET)
        self.process = self._stack.enter_context(running)
        assert self.process.stdout
        line = ""
        while "is ready" not in line:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()
        assert self.url in line
        while "--address" not in line:
            line = self.process.stdout.readline()
            if "its log" in line:
                self.logs = Path(line.split(": ")[1].strip())
        self.cluster = line.split("--address")[1].split()[0]

    def find(self, name: str) -> Any:
        return wait_until(lambda: find_named(self.process.pid, name), READY_S, name)

    def look(self) -> list[psutil.Process]:
        """Return every process there is, also of a Ray that is dead in part."""
        self._seen.update(find_children(self.process.pid))
        self._seen = {each for each in self._seen if is_alive(each)}
        return list(self._seen)

    def kill(self) -> None:
        """Kill every process there is, as where a machine's power goes."""
        for each in self.look():
            end_process(each)
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self._stack.close()
        self.listener.end()

    def client(self, key: str = MINE) -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, max_retries=0)

    def read_log(self) -> list[dict[str, Any]]:
        """Return every line that the endpoint's own processes have written so far."""
        texts = (each.read_text("utf-8") for each in self.logs.glob("replica_*.log"))
        return [json.loads(line) for text in texts for line in text.splitlines()]

    def count_attempts(self) -> int:
        return len(list((self.output / "clips").rglob("*.mp4")))

    def read_commit(self, prompt: str) -> Commit:
        commits = Ledger(ObjectStore(self.output)).read_commits()
        (found,) = (each for each in commits if each.request.prompt == prompt)
        return found
