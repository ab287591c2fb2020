"""Our own rules for the manifests: each takes an overlay's documents and yields what breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from jobs.api.proxy import IMPORT_PATH as PROXY_PATH
from jobs.application import EndpointConfig
from tests.support.manifest_nights import HEAD_SERVICE, QUEUE_NAME
from tests.support.manifest_room import (
    endpoints_have_room_by_day,
    gangs_have_nodes_of_their_own,
    gangs_have_room,
    nodes_with_gpus_can_go,
)
from tests.support.manifests import (
    K8S,
    Document,
    Pod,
    expand_documents,
    find_clusters,
    find_kind,
    find_pods,
    list_containers,
    list_variables,
    read_recipe,
)
from tests.support.network import matches

Rule = Callable[[list[Document]], Iterator[str]]

KUBERAY_SERVICES = {"online-head-svc": HEAD_SERVICE}
"""Services that KubeRay makes of a RayService, and the pods behind them."""
SECRETS = {"rushes-s3", "rushes-ray", "rushes-keys", "rushes-webhook", "rushes-hub"}
"""Those that k8s/README.md has one make."""
MOST_HEADS = 20
"""At once in a namespace: the endpoint's, a night's, and what was started by hand."""
METRICS_PORT = 8080
"""Where Ray exports metrics, as KubeRay starts it."""
PROXY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def images_are_pinned(documents: list[Document]) -> Iterator[str]:
    """No image without a tag of its own; `latest` is none."""
    for pod in find_pods(documents):
        for container in pod.containers:
            _, _, tag = container["image"].rpartition("/")[2].partition(":")
            if tag in ("", "latest"):
                yield f"{pod.where}: {container['image']}"


def resources_are_set(documents: list[Document]) -> Iterator[str]:
    """Each container asks for CPU and memory, and has limits of both."""
    for where, container in list_containers(documents):
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            missing = {"cpu", "memory"} - resources.get(kind, {}).keys()
            if missing:
                yield f"{where} {container.get('name')}: {kind} without {sorted(missing)}"


def pods_outlive_their_drain(documents: list[Document]) -> Iterator[str]:
    """A pod's grace is long enough for a checkpoint: in a worker's drain, before a head's."""
    grace_s = read_recipe(documents).checkpoint.grace_s
    for pod in _find_nodes(documents):
        (container,) = pod.spec["containers"]
        environment = {each["name"]: each.get("value") for each in container.get("env", ())}
        drain_s = float(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") or 30)
        stop_s = float(environment.get("RAY_JOB_STOP_WAIT_TIME_S") or 3)
        pod_s = pod.spec.get("terminationGracePeriodSeconds", 30)
        if pod.labels["ray.io/node-type"] == "worker":
            enough = pod_s > drain_s > grace_s
        else:
            enough = pod_s > stop_s > grace_s and pod_s > grace_s + drain_s
        if not enough:
            yield (
                f"{pod.where}: grace {pod_s} s, drain {drain_s} s, a job's end {stop_s} s, "
                f"checkpoint {grace_s} s"
            )
        if container.get("lifecycle", {}).get("preStop", {}).get("exec", {}) != {
            "command": ["leave-node"]
        }:
            yield f"{pod.where}: is ended without leave-node"


def heads_are_not_evicted(documents: list[Document]) -> Iterator[str]:
    """A budget keeps every head: a number that they never reach, so that none may go.

    It keeps nobody else: nodes could never be drained.
    """
    budgets = [each["spec"] for each in find_kind(documents, "PodDisruptionBudget")]
    for pod in find_pods(documents):
        mine = [each for each in budgets if matches(each["selector"], pod.labels)]
        if pod.labels.get("ray.io/node-type") != "head":
            if mine:
                yield f"{pod.where}: may not be evicted"
        elif not any(_exceeds(each.get("minAvailable"), MOST_HEADS) for each in mine):
            yield f"{pod.where}: may be evicted"


def _exceeds(least: int | str | None, most: int) -> bool:
    return isinstance(least, int) and least > most


def nights_end_by_their_deadline(documents: list[Document]) -> Iterator[str]:
    """A night's cluster goes soon after its end: nothing else stops what is past its deadline."""
    for job in find_kind(expand_documents(documents), "RayJob"):
        spec = job["spec"]
        after_s = spec.get("ttlSecondsAfterFinished", 0)
        if "activeDeadlineSeconds" not in spec:
            yield f"{job['metadata']['generateName']}: has no deadline"
        if not spec.get("shutdownAfterJobFinishes") or after_s > 60:
            yield f"{job['metadata']['generateName']}: renders {after_s} s past its deadline"


def groups_start_within_bounds(documents: list[Document]) -> Iterator[str]:
    """A group starts between its least and its most; without autoscaling, with one at least."""
    for whose, cluster in find_clusters(expand_documents(documents)):
        for group in cluster["workerGroupSpecs"]:
            low, now, high = (group[key] for key in ("minReplicas", "replicas", "maxReplicas"))
            if not low <= now <= high or (not cluster["enableInTreeAutoscaling"] and now < 1):
                yield f"{whose} {group['groupName']}: {low} ≤ {now} ≤ {high}"


def queued_nights_suit_kueue(documents: list[Document]) -> Iterator[str]:
    """Kueue takes a RayJob that is suspended, of a fixed size, and ends with its cluster."""
    for job in find_kind(expand_documents(documents), "RayJob"):
        spec = job["spec"]
        if QUEUE_NAME in job["metadata"]["labels"] and not (
            spec.get("suspend")
            and spec.get("shutdownAfterJobFinishes")
            and not spec["rayClusterSpec"]["enableInTreeAutoscaling"]
        ):
            yield f"{job['metadata']['generateName']}: Kueue would refuse it"


def selectors_match(documents: list[Document]) -> Iterator[str]:
    """Whatever selects pods by their labels finds some."""
    pods = find_pods(documents)
    for each in documents:
        spec = each.get("spec", {})
        selector = {
            "NetworkPolicy": lambda spec=spec: spec["podSelector"],
            "PodDisruptionBudget": lambda spec=spec: spec["selector"],
            "PodMonitor": lambda spec=spec: spec["selector"],
            "Deployment": lambda spec=spec: spec["selector"],
            "Service": lambda spec=spec: {"matchLabels": spec["selector"]},
        }.get(each["kind"])
        if selector and not any(matches(selector(), pod.labels) for pod in pods):
            yield f"{each['kind']} {each['metadata']['name']}: selects nothing"


def references_exist(documents: list[Document]) -> Iterator[str]:
    """ConfigMaps, Secrets, claims, accounts and volumes that pods name are there."""
    names = {(each["kind"], each["metadata"].get("name")) for each in documents}
    for pod in find_pods(documents):
        asked = {("ServiceAccount", pod.spec.get("serviceAccountName"))}
        volumes = {each["name"]: each for each in pod.spec.get("volumes", ())}
        for container in pod.containers:
            mounts = {each["name"] for each in container.get("volumeMounts", ())}
            for name in mounts - volumes.keys():
                yield f"{pod.where}: no volume {name}"
            for each in container.get("envFrom", ()):
                asked.add(("ConfigMap", each.get("configMapRef", {}).get("name")))
                asked.add(("Secret", each.get("secretRef", {}).get("name")))
            for each in container.get("env", ()):
                key = each.get("valueFrom", {}).get("secretKeyRef", {})
                asked.add(("Secret", key.get("name")))
        for each in volumes.values():
            asked.add(("ConfigMap", each.get("configMap", {}).get("name")))
            asked.add(("Secret", each.get("secret", {}).get("secretName")))
            claim = each.get("persistentVolumeClaim", {}).get("claimName")
            asked.add(("PersistentVolumeClaim", claim))
        for kind, name in sorted(item for item in asked if item[1]):
            if (kind, name) not in names and not (kind == "Secret" and name in SECRETS):
                yield f"{pod.where}: no {kind} {name}"


def ports_match(documents: list[Document]) -> Iterator[str]:
    """Services, probes and submitters name ports that the containers behind them have."""
    pods = find_pods(documents)
    for service in find_kind(documents, "Service"):
        for port in service["spec"]["ports"]:
            for pod in pods:
                wanted = port.get("targetPort", port["port"])
                if matches({"matchLabels": service["spec"]["selector"]}, pod.labels) and (
                    wanted not in _list_ports(pod)
                ):
                    yield f"Service {service['metadata']['name']}: {pod.where} has no port {wanted}"
    for pod in pods:
        for container in pod.containers:
            for probe in ("readinessProbe", "livenessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                if port and port not in _list_ports(pod):
                    yield f"{pod.where}: {probe} asks port {port}"
            address = list_variables(container).get("RAY_DASHBOARD_ADDRESS") or ""
            for host, port in re.findall(r"^([\w.-]+):(\d+)$", address):
                selector = {"matchLabels": KUBERAY_SERVICES.get(host, {"": ""})}
                behind = [each for each in pods if matches(selector, each.labels)]
                if not any(int(port) in _list_ports(each) for each in behind):
                    yield f"{pod.where}: nothing at {host}:{port}"


def nodes_are_probed(documents: list[Document]) -> Iterator[str]:
    """Whatever runs for long says if it is well; whether Ray's workers are ready, KubeRay asks."""
    for pod in find_pods(documents):
        if pod.group or pod.where.startswith("Deployment"):
            is_worker = pod.labels.get("ray.io/node-type") == "worker"
            wanted = {"livenessProbe"} if is_worker else {"livenessProbe", "readinessProbe"}
            for container in pod.spec["containers"]:
                found = {name for name in container if name.endswith("Probe")}
                if found != wanted:
                    yield f"{pod.where}: {sorted(found)}, not {sorted(wanted)}"


def nodes_are_scraped(documents: list[Document]) -> Iterator[str]:
    """The PodMonitor finds every Ray node, and by its port's name where Ray exports metrics."""
    monitor = yaml.safe_load((K8S / "monitoring" / "scrape.yaml").read_text("utf-8"))["spec"]
    asked = {(each["port"], METRICS_PORT) for each in monitor["podMetricsEndpoints"]}
    for pod in _find_nodes(documents):
        ports = {(port["name"], port["containerPort"]) for port in _list_port_entries(pod)}
        if not matches(monitor["selector"], pod.labels) or not asked <= ports:
            yield f"{pod.where}: {sorted(ports)}, not {sorted(asked)}"


def applications_load(documents: list[Document]) -> Iterator[str]:
    """A RayService's config is one of Serve's, and its arguments are the endpoint's."""
    from ray.serve.schema import ServeDeploySchema

    for service in find_kind(documents, "RayService"):
        try:
            config = ServeDeploySchema.model_validate(
                yaml.safe_load(service["spec"]["serveConfigV2"])
            )
            for each in config.applications:
                if each.import_path != "jobs.application:build_endpoint":
                    yield f"import_path {each.import_path}"
                EndpointConfig.model_validate(each.args)
        except ValueError as error:
            yield str(error)


def endpoints_are_never_doubled(documents: list[Document]) -> Iterator[str]:
    """No upgrade makes a second cluster beside the first: an endpoint's output has one writer."""
    for service in find_kind(documents, "RayService"):
        if service["spec"].get("upgradeStrategy") != {"type": "None"}:
            yield f"{service['metadata']['name']}: {service['spec'].get('upgradeStrategy')}"


def endpoints_listen_to_callers(documents: list[Document]) -> Iterator[str]:
    """Serve's proxies listen at each pod's own address, at a port that its nodes have."""
    for service in find_kind(documents, "RayService"):
        options = yaml.safe_load(service["spec"]["serveConfigV2"]).get("http_options", {})
        for pod in find_pods([service]):
            if options.get("host") != "0.0.0.0" or options.get("port") not in _list_ports(pod):
                yield f"{pod.where}: {options}"


def proxies_answer_as_the_endpoint(documents: list[Document]) -> Iterator[str]:
    """On each of a RayService's nodes, Serve's proxy is wrapped by ours."""
    for pod in find_pods(documents):
        if pod.where.startswith("RayService"):
            given = pod.spec["containers"][0].get("env", ())
            env = {each["name"]: each.get("value") for each in given}
            if env.get(PROXY_VARIABLE) != PROXY_PATH:
                yield f"{pod.where}: {PROXY_VARIABLE} is no {PROXY_PATH}"


RULES: tuple[Rule, ...] = (
    images_are_pinned, resources_are_set, pods_outlive_their_drain, gangs_have_room,
    gangs_have_nodes_of_their_own, nodes_with_gpus_can_go, endpoints_have_room_by_day,
    heads_are_not_evicted, nights_end_by_their_deadline, groups_start_within_bounds,
    queued_nights_suit_kueue, selectors_match, references_exist, ports_match, nodes_are_probed,
    nodes_are_scraped, applications_load, endpoints_are_never_doubled,
    endpoints_listen_to_callers, proxies_answer_as_the_endpoint,
)  # fmt: skip


def _find_nodes(documents: list[Document]) -> list[Pod]:
    return [pod for pod in find_pods(documents) if pod.group]


def _list_ports(pod: Pod) -> set[str | int]:
    ports = _list_port_entries(pod)
    return {port["containerPort"] for port in ports} | {port["name"] for port in ports}


def _list_port_entries(pod: Pod) -> list[dict[str, Any]]:
    return [port for each in pod.containers for port in each.get("ports", ())]
