"""Rules of nights and of the nodes that they run on: one clock, a bound, an end that is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.manifests import (
    K8S,
    Document,
    Pod,
    expand_documents,
    find_clusters,
    find_kind,
    find_pods,
    list_variables,
)
from tests.support.network import matches

DAY_S = 24 * 3600
FETCH_S = 3600
"""What a head may take to fetch a model, before it answers anyone."""
MARGIN_S = 60
"""From a first try's deadline to the end that `start-night` gives to all."""
MOST_KEPT = 14
"""Nights that are there to be looked at."""
LEAST_STARTED = 14
"""Nights that may be started within a day, most by hand, and the first still be there."""
OF_A_JOB = {
    "RUSHES_JOB": "metadata.labels['batch.kubernetes.io/job-name']",
    "RUSHES_JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
}
"""How a pod is told whose it is: labels that Kubernetes gives it."""
OF_A_SUBMITTER = {
    "RAY_JOB_SUBMISSION_ID": "metadata.name",
    "RUSHES_JOB": OF_A_JOB["RUSHES_JOB"],
}
"""How one of our own is told its night: each pod's is another, the evening is the Job's."""
NEEDED = set(
    re.findall(r'os\.environ\["(\w+)"\]', (K8S / "bin" / "submit-night").read_text("utf-8"))
)
"""Variables that `submit-night` doesn't go without; KubeRay gives them to a RayJob's submitter."""
QUEUE_NAME = "kueue.x-k8s.io/queue-name"
"""The label of what Kueue admits."""
HEAD_SERVICE = {
    "ray.io/node-type": "head",
    "app.kubernetes.io/name": "kuberay",
    "app.kubernetes.io/created-by": "kuberay-operator",
}
"""How KubeRay's services find a head (HeadServiceLabels), but for the cluster's own name."""
ZONE = "topology.kubernetes.io/zone"
"""What nodes are near each other in."""
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
"""How a pod says where it would rather be."""
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "v1.34",
}


def services_find_heads(documents: list[Document]) -> Iterator[str]:
    """No label of a head's template takes the place of one that KubeRay's services look for."""
    for pod in find_pods(documents):
        if pod.labels.get("ray.io/node-type") == "head" and not matches(
            {"matchLabels": HEAD_SERVICE}, pod.labels
        ):
            yield f"{pod.where}: {pod.labels}"


def nights_have_one_clock(documents: list[Document]) -> Iterator[str]:
    """A CronJob starts nights, or KubeRay does; what the other would need isn't there."""
    clocks = [each["metadata"]["name"] for each in find_kind(documents, "CronJob")]
    for night in find_kind(documents, "RayCronJob"):
        if night["spec"]["suspend"] != (clocks == ["night"]):
            yield f"suspend {night['spec']['suspend']}, with CronJobs {clocks}"
        if not night["spec"]["suspend"]:
            for each in documents:
                if each["metadata"].get("name") == "clock":
                    yield f"{each['kind']} clock, though KubeRay starts nights"


def clocks_wait_for_the_last_night(documents: list[Document]) -> Iterator[str]:
    """No CronJob starts a Job beside the one before it."""
    for clock in find_kind(documents, "CronJob"):
        if clock["spec"].get("concurrencyPolicy") != "Forbid":
            yield f"{clock['metadata']['name']}: {clock['spec'].get('concurrencyPolicy')}"


def clocks_are_of_utc(documents: list[Document]) -> Iterator[str]:
    """Nights start by UTC, as their dates and alerts suppose, whatever a controller's own zone."""
    for kind in ("CronJob", "RayCronJob"):
        for clock in find_kind(documents, kind):
            if clock["spec"].get("timeZone") != "Etc/UTC":
                yield f"{kind} {clock['metadata']['name']}: {clock['spec'].get('timeZone')}"


def nights_go_with_their_clock(documents: list[Document]) -> Iterator[str]:
    """A RayJob belongs to the clock's Job that started it; of those some stay, and not for ever."""
    for clock in find_kind(documents, "CronJob"):
        kept = [clock["spec"].get(f"{end}JobsHistoryLimit") for end in ("successful", "failed")]
        if not all(2 <= (each or 0) <= MOST_KEPT for each in kept):
            yield f"{clock['metadata']['name']}: keeps {kept} Jobs"
        (container,) = clock["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        if container["command"][0] == "start-night":
            if (kept[0] or 0) < LEAST_STARTED:
                yield f"{clock['metadata']['name']}: its nights may go after {kept[0]} more"
            paths = _list_paths(container)
            if not OF_A_JOB.items() <= paths.items():
                yield f"{clock['metadata']['name']}: knows of its Job {paths}"


def clocks_alone_have_a_deadline(documents: list[Document]) -> Iterator[str]:
    """A Job that only starts a night has one, and none that submits it: alerts tell by it."""
    for clock in find_kind(documents, "CronJob"):
        job = clock["spec"]["jobTemplate"]["spec"]
        (command, *_) = job["template"]["spec"]["containers"][0]["command"]
        if (command == "start-night") != ("activeDeadlineSeconds" in job):
            yield f"{command}: a deadline of {job.get('activeDeadlineSeconds')} s"


def nights_are_tried_again(documents: list[Document]) -> Iterator[str]:
    """A night that breaks has another try, and is over before the next one, however many it has.

    Kueue's has one more alone: it begins with all its GPUs again.
    """
    for night in find_kind(documents, "RayCronJob"):
        spec = night["spec"]["jobTemplate"]
        tries = spec.get("backoffLimit", 0) + 1
        queued = QUEUE_NAME in night["metadata"]["labels"]
        if not (tries == 2 if queued else 2 <= tries <= 3):
            yield f"{tries} tries"
        deadline_s = spec.get("activeDeadlineSeconds", DAY_S)
        longest_s = deadline_s + MARGIN_S if night["spec"]["suspend"] else tries * deadline_s
        if longest_s >= DAY_S:
            yield f"{tries} tries of {deadline_s} s: over after {longest_s} s"
    for clock in find_kind(documents, "CronJob"):
        pod = clock["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        if pod["containers"][0]["command"][0] == "submit-night":
            limit = clock["spec"]["jobTemplate"]["spec"].get("backoffLimit", 6)
            if not 1 <= limit <= 2:
                yield f"{limit + 1} tries"


def submitters_end_as_their_nights(documents: list[Document]) -> Iterator[str]:
    """A submitter is ours: of what its RayJob says, and no longer there than that may take."""
    for job in find_kind(expand_documents(documents), "RayJob"):
        spec, pod = job["spec"], job["spec"]["submitterPodTemplate"]["spec"]
        (container,) = pod["containers"]
        if container.get("command") != ["submit-night"]:
            yield f"{container.get('command')} submits"
        if container.get("args") != [spec["entrypoint"]]:
            yield f"{container.get('args')} is submitted, not {spec['entrypoint']}"
        if pod.get("activeDeadlineSeconds") != spec.get("activeDeadlineSeconds"):
            yield f"a submitter of {pod.get('activeDeadlineSeconds')} s"


def submitters_wait_for_models(documents: list[Document]) -> Iterator[str]:
    """KubeRay submits a night to a head that answers; the endpoint's may still fetch its model."""
    for pod, container in _find_submitters(documents):
        wait_s = list_variables(container).get("RUSHES_SUBMIT_WAIT_S")
        if float(wait_s or 0) < FETCH_S:
            yield f"{pod.where}: waits {wait_s} s"


def submitters_know_their_night(documents: list[Document]) -> Iterator[str]:
    """A submitter of our own is given what KubeRay gives to its."""
    for pod, container in _find_submitters(documents):
        if missing := NEEDED - list_variables(container).keys():
            yield f"{pod.where}: without {sorted(missing)}"
        if not OF_A_SUBMITTER.items() <= _list_paths(container).items():
            yield f"{pod.where}: knows of its night {_list_paths(container)}"


def calls_need_a_token(documents: list[Document]) -> Iterator[str]:
    """Every cluster asks for the secret's token, and a submitter of our own brings it."""
    for whose, cluster in find_clusters(expand_documents(documents)):
        if cluster.get("authOptions") != {"mode": "token", "secretName": "rushes-ray"}:
            yield f"{whose}: {cluster.get('authOptions')}"
    for pod, container in _find_submitters(documents):
        given = list_variables(container)
        if given.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" not in given:
            yield f"{pod.where}: {given}"


def heads_stay(documents: list[Document]) -> Iterator[str]:
    """A cluster autoscaler moves no head; beside spot GPUs, its node is none that is taken back."""
    for whose, cluster in find_clusters(expand_documents(documents)):
        template = cluster["headGroupSpec"]["template"]
        annotations = template["metadata"].get("annotations", {})
        if annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict") != "false":
            yield f"{whose} head: {annotations}"
        where = template["spec"].get("nodeSelector")
        if any(map(_has_gpus, cluster["workerGroupSpecs"])) and where != {
            "rushes/nodes": "on-demand"
        }:
            yield f"{whose} head: on {where}"


def gpus_are_of_spot_nodes(documents: list[Document]) -> Iterator[str]:
    """A group with GPUs asks for the nodes that have them, and tolerates their taints."""
    for whose, cluster in find_clusters(expand_documents(documents)):
        for group in filter(_has_gpus, cluster["workerGroupSpecs"]):
            spec = group["template"]["spec"]
            taints = {each["key"] for each in spec.get("tolerations", ())}
            if spec.get("nodeSelector") != {"rushes/nodes": "spot-gpu"}:
                yield f"{whose} {group['groupName']}: on {spec.get('nodeSelector')}"
            if not {"nvidia.com/gpu", "rushes/spot"} <= taints:
                yield f"{whose} {group['groupName']}: tolerates {taints}"


def wide_gangs_are_near(documents: list[Document]) -> Iterator[str]:
    """A node with several GPUs is rather near its own group's, and waits for no such place."""
    nodes = [pod for pod in find_pods(documents) if pod.group]
    for pod in nodes:
        limits = pod.spec["containers"][0]["resources"]["limits"]
        wanted = {pod.labels["ray.io/group"]} if int(limits.get("nvidia.com/gpu", 0)) > 1 else set()
        affinity = pod.spec.get("affinity", {}).get("podAffinity", {})
        terms = [each["podAffinityTerm"] for each in affinity.get(PREFERRED, ())]
        near = {
            each.labels["ray.io/group"]
            for each in nodes
            for term in terms
            if term["topologyKey"] == ZONE and matches(term["labelSelector"], each.labels)
        }
        if near != wanted or affinity.keys() - {PREFERRED}:
            yield f"{pod.where}: near {near}, not {wanted}: {affinity}"


def namespaces_are_restricted(documents: list[Document]) -> Iterator[str]:
    """The namespace itself refuses pods that aren't, by one version of the standard."""
    namespaces = find_kind(documents, "Namespace")
    if not namespaces:
        yield "no Namespace"
    for each in namespaces:
        if not RESTRICTED.items() <= each["metadata"].get("labels", {}).items():
            yield f"{each['metadata']['name']}: {each['metadata'].get('labels')}"


def _find_submitters(documents: list[Document]) -> Iterator[tuple[Pod, dict[str, Any]]]:
    """Yield the pods that submit to a cluster which is none of KubeRay's RayJobs, and what runs."""
    for pod in find_pods(documents):
        if pod.where.startswith("CronJob") and (
            pod.labels.get("app.kubernetes.io/component") == "submitter"
        ):
            (container,) = pod.spec["containers"]
            yield pod, container


def _list_paths(container: dict[str, Any]) -> dict[str, str | None]:
    """Return what a container's variables are told of its own pod, by name."""
    return {
        each["name"]: each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        for each in container.get("env", ())
    }


def _has_gpus(group: dict[str, Any]) -> bool:
    (container,) = group["template"]["spec"]["containers"]
    return "nvidia.com/gpu" in container["resources"]["limits"]


RULES: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    services_find_heads, nights_have_one_clock, clocks_wait_for_the_last_night, clocks_are_of_utc,
    nights_go_with_their_clock, clocks_alone_have_a_deadline, nights_are_tried_again,
    submitters_end_as_their_nights, submitters_wait_for_models, submitters_know_their_night,
    calls_need_a_token, heads_stay, gpus_are_of_spot_nodes, wide_gangs_are_near,
    namespaces_are_restricted,
)  # fmt: skip
