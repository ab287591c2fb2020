"""What KubeRay would do, done by hand: a night on a head and three workers, one of them taken back.

`python -m tests.k8s.night_by_hand FOLDER`, as root in namespaces of its own (see
`tests.support.pods`). Pods run what the overlay cpu-demo says, and the night is what `start-night`
makes of its RayCronJob; tables and output are in an S3 server. The night's workers come late. The
endpoint then loses a gang, and the server once has no time for it. All is scraped, where there is
a Prometheus, at the manifests' interval and Ray's own. Prints, last, a line of JSON: what was seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import openai
import yaml
from moto.server import ThreadedMotoServer

from pipeline.checkpoints import Checkpoints
from pipeline.lease import read_lease
from pipeline.ledger import Ledger
from pipeline.runs import read_runs
from pipeline.store import ObjectStore
from tests.support.command import ROOT, wait_until, write_table
from tests.support.faulty_s3 import serve_faults
from tests.support.kube_api import start_night
from tests.support.manifests import (
    Document,
    build_overlay,
    find_kind,
    find_recipe_text,
    find_settings,
)
from tests.support.pods import (
    BRIDGE,
    RunningPod,
    make_network,
    make_ray_start,
    remove_pod,
    start_pod,
)
from tests.support.prometheus import (
    PROMETHEUS,
    find_metrics,
    has_all_metrics,
    query_range,
    read_dashboard,
    scraping,
)

NUM_CLIPS, STEPS, NUM_QUEUED = 4, 80, 24
HEAD, WORKERS = "10.231.0.2", ("10.231.0.3", "10.231.0.4", "10.231.0.5")
TOKEN, KEY = "0123456789abcdef" * 4, "a-key"
START_S, RUN_S, SCRAPE_S = 120.0, 300.0, 60.0
RANK = "ray::RankWorker.advance"
STEPS_MADE = 'sum(ray_rushes_steps_total{urgency="batch"})'
ARE_QUEUED = f'sum(ray_rushes_videos{{state="queued"}}) >= {NUM_QUEUED / 2}'


def main() -> None:
    folder = Path(sys.argv[1])
    documents = build_overlay("cpu-demo")
    (night,) = find_kind(documents, "RayCronJob")
    make_network()
    _, (created,) = start_night(night, folder)
    job = created["spec"]
    settings = {**find_settings(documents), "AWS_ENDPOINT_URL": f"http://{BRIDGE}:9000"}
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]  # of a local cluster that whoever called this has started
    os.environ.update(
        AWS_ENDPOINT_URL=settings["AWS_ENDPOINT_URL"],
        AWS_DEFAULT_REGION=settings["AWS_DEFAULT_REGION"],
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        RAY_AUTH_MODE=job["rayClusterSpec"]["authOptions"]["mode"],
        RAY_AUTH_TOKEN=TOKEN,
        PYTHONPATH=str(ROOT),
        PATH=f"{Path(sys.executable).parent}:{ROOT / 'k8s' / 'bin'}:{os.environ['PATH']}",
    )
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    storage = "http://{}:{}".format(*server.get_host_and_port())
    pods = [("head", HEAD), *((f"worker-{n}", each) for n, each in enumerate(WORKERS))]
    watched = scraping(pods, folder) if PROMETHEUS else nullcontext()
    with watched, serve_faults(storage, make_busy_once(), (BRIDGE, 9000)):
        print(json.dumps(watch_night(documents, job, settings, folder)), flush=True)


def make_busy_once() -> Callable[[str, str], str | None]:
    """Have one call of the endpoint's dispatcher answered with 503: the first video's writing."""
    was_busy: list[str] = []

    def choose(method: str, path: str) -> str | None:
        if method == "PUT" and "/online/videos/" in path and not was_busy:
            was_busy.append(path)
            return "throttled"
        return None

    return choose


def watch_night(
    documents: list[Document], job: dict[str, Any], settings: dict[str, str], folder: Path
) -> dict[str, Any]:
    """Return what was seen of a night, the endpoint, and a night that is stopped."""
    began = time.time()
    boto3.client("s3").create_bucket(Bucket=settings["RUSHES_TABLES"].split("/")[2])
    fill_bucket(folder, settings["RUSHES_TABLES"], "ads")
    cluster = job["rayClusterSpec"]
    start = partial(start_group, find_recipe_text(documents), settings, folder)
    head = start("head", HEAD, cluster["headGroupSpec"], None)
    with submit(job, "night") as submitter:
        failing = fail_night(job)  # meanwhile, as no node is there, nothing of the night changes
        workers = start_workers(start, cluster)
        probes = [probe(each) for each in (head, *workers)]
        seen = run_night(submitter, job, settings, workers)
    seen |= {"failing": failing, "probes": probes}
    alive = [each for each in workers if each.process.poll() is None]
    (service,) = find_kind(documents, "RayService")
    seen |= serve_online(service["spec"]["serveConfigV2"], alive, folder)
    seen["endpoint_log"] = read_endpoint_log(head)
    fill_bucket(folder, settings["RUSHES_TABLES"], "more")
    # Of the first night, and the endpoint: the second one's steps are still to come.
    seen["steps"] = query_range(STEPS_MADE, began, time.time()) if PROMETHEUS else []
    seen["stopped"] = stop_night(job, settings, head, alive, began)
    seen["panels"] = read_dashboard(began) if PROMETHEUS else []
    seen["metrics"] = find_metrics(began) if PROMETHEUS else {}
    return seen


def fill_bucket(folder: Path, tables: str, name: str) -> None:
    """Put a table where the night looks for some."""
    prompts = [f"a red ball moving left, {name} {number}" for number in range(NUM_CLIPS)]
    table = write_table(
        folder / "ads.parquet", prompt=prompts, num_inference_steps=[STEPS] * NUM_CLIPS
    )
    bucket, _, key = tables.removeprefix("s3://").replace("*", name).partition("/")
    boto3.client("s3").upload_file(table, bucket, key)


def start_group(
    recipe: str,
    settings: dict[str, str],
    folder: Path,
    name: str,
    address: str,
    group: dict[str, Any],
    join: str | None,
) -> RunningPod:
    """Start a pod of a group; again where it ends before it is well, as the operator does."""
    files = {
        "rushes/recipe.toml": recipe,
        "rushes-keys/keys": sha256(KEY.encode()).hexdigest(),
    }
    (container,) = group["template"]["spec"]["containers"]
    command = make_ray_start(group["rayStartParams"], container, join)
    while True:
        pod = start_pod(name, address, container, command, files, settings, folder)
        wait_until(partial(is_settled, pod), START_S, f"{name} up")
        if pod.process.poll() is None:
            return pod
        remove_pod(pod)


def start_workers(
    start: Callable[[str, str, dict[str, Any], str], RunningPod], cluster: dict[str, Any]
) -> list[RunningPod]:
    """Start all workers at once."""
    (group,) = cluster["workerGroupSpecs"]
    with ThreadPoolExecutor(len(WORKERS)) as threads:
        joining = [
            threads.submit(start, f"worker-{number}", address, group, HEAD)
            for number, address in enumerate(WORKERS)
        ]
        return [each.result() for each in joining]


def is_settled(pod: RunningPod) -> bool:
    """Return whether a pod is well, or has ended."""
    return pod.process.poll() is not None or all(answers(pod))


def answers(pod: RunningPod) -> list[bool]:
    """Return how a pod's probes go, asked from outside and without a token."""
    return list(probe(pod).values())


def probe(pod: RunningPod) -> dict[str, bool]:
    """Return of each probe of the pod whether it is answered well."""
    found: dict[str, bool] = {}
    for name in {"readinessProbe", "livenessProbe"} & pod.container.keys():
        asked = pod.container[name]["httpGet"]
        url = f"http://{pod.address}:{asked['port']}{asked['path']}"
        try:
            found[name] = urllib.request.urlopen(url, timeout=5).status == 200
        except OSError:
            found[name] = False
    return found


@contextmanager
def submit(
    job: dict[str, Any], name: str, entrypoint: str = ""
) -> Generator[subprocess.Popen[str]]:
    """Submit a night as its submitter's pod does, with what KubeRay 1.7 gives that; end it at last.

    Upstream, configureSubmitterContainer: where and as what, and the token.
    """
    (container,) = job["submitterPodTemplate"]["spec"]["containers"]
    args = [entrypoint] if entrypoint else container["args"]
    given = {"RAY_DASHBOARD_ADDRESS": f"{HEAD}:8265", "RAY_JOB_SUBMISSION_ID": name}
    submitter = subprocess.Popen(
        [*container["command"], *args],
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield submitter
    finally:
        submitter.kill()
        submitter.wait()


def read_endpoint_log(head: RunningPod) -> list[dict[str, Any]]:
    """Return the lines of the endpoint's log that are on the head, from where the README says."""
    files = "/tmp/ray/session_latest/logs/serve/replica_rushes_Dispatcher_*.log"
    return [json.loads(line) for line in head.run("sh", "-c", f"cat {files}").stdout.splitlines()]


def lose_gang(workers: list[RunningPod]) -> None:
    """Kill the rank that advances a clip, as a kernel does that is out of memory."""

    def find_rank() -> tuple[RunningPod, str] | None:
        for pod in workers:
            if pids := pod.run("pgrep", "--full", RANK).stdout.split():
                return pod, pids[0]
        return None

    pod, pid = wait_until(find_rank, RUN_S, "a clip under way")
    pod.run("kill", "-KILL", pid)


def read_saved(ledger: Ledger) -> list[int]:
    """Return the steps at which unfinished clips are saved."""
    saves = Checkpoints(ledger.store, ledger.read_output().model_fingerprint)
    found = [saves.load(each, print) for each in saves.clip_ids()]
    return [each[0].step for each in found if each and each[0].kind == "snapshot"]


def wait_for_clip(workers: list[RunningPod]) -> RunningPod:
    """Wait until a rank advances a clip, and return its pod."""
    return wait_until(
        lambda: next((each for each in workers if each.find(RANK)), None), RUN_S, "a clip under way"
    )


def run_night(
    submitter: subprocess.Popen[str],
    job: dict[str, Any],
    settings: dict[str, str],
    workers: list[RunningPod],
) -> dict[str, Any]:
    """See a night through that was submitted; take a worker back in the middle of a clip."""
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
    ledger = Ledger(ObjectStore(settings["RUSHES_OUTPUT"]))

    def has_committed() -> bool:
        assert submitter.poll() is None, submitter.communicate()
        return bool(ledger.committed_ids())

    wait_until(has_committed, RUN_S, "a commit")
    took_s = wait_for_clip(workers).delete(grace_s)
    saved = read_saved(ledger)
    log, _ = submitter.communicate(timeout=RUN_S)
    commits = list(ledger.read_commits())
    report = ledger.store.read("report.json")
    return {
        "reported": json.loads(report)["rows"]["committed"],
        "log": log,
        "code": submitter.returncode,
        "status": ledger.status().model_dump(),
        "commits": [each.model_dump(mode="json") for each in commits],
        "saved": saved,
        "took_s": took_s,
        "grace_s": grace_s,
    }


def fail_night(job: dict[str, Any]) -> int:
    """Submit a night whose table isn't there; return how its submitter ends."""
    entrypoint = job["entrypoint"].replace("$RUSHES_TABLES", "s3://nowhere/none.parquet")
    with submit(job, "failing", entrypoint) as submitter:
        submitter.communicate(timeout=RUN_S)
    return submitter.returncode


def stop_night(
    job: dict[str, Any],
    settings: dict[str, str],
    head: RunningPod,
    workers: list[RunningPod],
    since: float,
) -> dict[str, Any]:
    """Begin another night and end its head in the middle of a clip, as a deadline or Kueue does.

    Not before all that there was since then has been scraped.
    """
    grace_s = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    store = ObjectStore(settings["RUSHES_OUTPUT"])
    with submit(job, "another"):
        if PROMETHEUS:
            wait_until(partial(has_all_metrics, since), SCRAPE_S, "all metrics")
        wait_for_clip(workers)
        took_s = head.delete(grace_s["terminationGracePeriodSeconds"])
    lease = read_lease(store)
    return {
        "took_s": took_s,
        "ended": [each.ended for each in read_runs(store)],
        "lease_is_over": lease is not None and lease.is_over(),
        "saved": len(Checkpoints(store, "").clip_ids()),
    }


def are_seen_to_wait() -> bool:
    """Return whether a scrape has most of the callers that wait."""
    return bool(query_range(ARE_QUEUED, time.time(), time.time()))


def serve_online(config: str, workers: list[RunningPod], folder: Path) -> dict[str, Any]:
    """Deploy a RayService's application as KubeRay does, by the dashboard, and ask for a video.

    Its gang is lost in the middle. Others wait meanwhile, more than are in the pool at once.
    """
    (path := folder / "serve.yaml").write_text(config, "utf-8")
    deployed = subprocess.run(
        ["serve", "deploy", "--address", f"http://{HEAD}:8265", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    port = yaml.safe_load(config)["http_options"]["port"]
    client = openai.OpenAI(base_url=f"http://{HEAD}:{port}/v1", api_key=KEY, max_retries=0)

    def is_ready() -> bool:
        try:
            return bool(client.models.list().data)
        except openai.APIError:
            return False

    wait_until(is_ready, RUN_S, f"the endpoint: {deployed.stdout}{deployed.stderr}")
    stranger = openai.OpenAI(base_url=client.base_url, api_key="another", max_retries=0)
    try:
        stranger.models.list()
        refused = False
    except openai.AuthenticationError:
        refused = True
    asked = client.videos.with_raw_response.create(
        prompt="a blue square", extra_body={"num_inference_steps": STEPS}
    )
    lose_gang(workers)
    slow = {"num_inference_steps": STEPS}
    others = [
        client.videos.create(prompt=f"queued {n}", extra_body=slow).id for n in range(NUM_QUEUED)
    ]
    if PROMETHEUS:
        wait_until(are_seen_to_wait, SCRAPE_S, "callers that are seen to wait")
    video = asked.parse()
    while video.status in ("queued", "in_progress"):
        time.sleep(1)
        video = client.videos.retrieve(video.id)
    for each in others:
        client.videos.delete(each)
    content = (
        client.videos.download_content(video.id).read() if video.status == "completed" else b""
    )
    return {
        "request_id": asked.headers.get("x-request-id"),
        "video_id": video.id,
        "video": video.status,
        "size_bytes": len(content),
        "refused": refused,
    }


if __name__ == "__main__":
    main()
