"""Rules of what pods may: on their nodes, of Kubernetes, and who holds secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.manifests import (
    Document,
    Pod,
    expand_documents,
    find_clusters,
    find_kind,
    find_pods,
    list_containers,
)

POD = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The security context of every pod, which may have the same number as its `fsGroup`."""
CONTAINER = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""That of every container: what else it may say would take from a pod's, or add to its rights."""
VOLUMES = {"configMap", "emptyDir", "secret", "persistentVolumeClaim"}
RIGHTS = {("ray.io", "raycronjobs", "get"), ("ray.io", "rayjobs", "create")}
"""Whatever a role of ours may give: API group, resource, verb."""
SECRET_NAME = re.compile(r"SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY|API_?KEY|TOKEN", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"\bAKIA[A-Z0-9]{16}\b|\bwhsec_\w|\bhf_\w{20}|-----BEGIN |(?:SECRET|PASSWORD|KEY|TOKEN)\w*=\w"
)
"""Keys of AWS, of webhooks, of the model hub and of TLS, and a variable that is given one."""


def pods_are_restricted(documents: list[Document]) -> Iterator[str]:
    """What pod security's level `restricted` asks for, and a root file system that is read only."""
    for pod in find_pods(documents):
        context = pod.spec.get("securityContext", {})
        if {"fsGroup": 1000, **context} != {"fsGroup": 1000, **POD}:
            yield f"{pod.where}: {context}"
        for shared in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(shared):
                yield f"{pod.where}: {shared}"
        volumes = {kind for each in pod.spec.get("volumes", ()) for kind in each if kind != "name"}
        if not volumes <= VOLUMES:
            yield f"{pod.where}: volumes of kinds {volumes}"
    for where, container in list_containers(documents):
        if container.get("securityContext") != CONTAINER:
            yield f"{where} {container.get('name')}: {container.get('securityContext')}"
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"{where} {container.get('name')}: a port of its node's"


def accounts_have_least_rights(documents: list[Document]) -> Iterator[str]:
    """A pod that doesn't talk to Kubernetes holds no token."""
    for pod in find_pods(documents):
        if pod.labels.get("rushes/talks-to") != "kubernetes" and _has_token(documents, pod):
            yield f"{pod.where}: has a token of {pod.spec.get('serviceAccountName')}"
    for whose, cluster in find_clusters(expand_documents(documents)):
        head = cluster["headGroupSpec"]["template"]
        if not cluster["enableInTreeAutoscaling"] and (
            head["spec"].get("automountServiceAccountToken") is not False
            or "rushes/talks-to" in head["metadata"]["labels"]
        ):
            yield f"{whose} head: talks to Kubernetes though it has no autoscaler"


def roles_give_what_is_listed(documents: list[Document]) -> Iterator[str]:
    """Roles give the few rights that are needed, to clocks alone, and in this namespace alone."""
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        for each in find_kind(documents, kind):
            yield f"{kind} {each['metadata']['name']}"
    for role in find_kind(documents, "Role"):
        given = set(_list_rights(role.get("rules", ())))
        if not given <= RIGHTS:
            yield f"{role['metadata']['name']}: {sorted(given - RIGHTS)}"
    clocks = {pod.spec.get("serviceAccountName") for pod in _find_clocks(documents)}
    for each in find_kind(documents, "RoleBinding"):
        if _find_role(documents, each) is None:
            yield f"{each['metadata']['name']}: binds {each['roleRef']}, which is not here"
        if not {subject["name"] for subject in each["subjects"]} <= clocks:
            yield f"{each['metadata']['name']}: to {each['subjects']}, not {clocks} alone"


def clocks_may_start_nights(documents: list[Document]) -> Iterator[str]:
    """A clock's night is there; its account is bound to a role that may read that and start it."""
    nights = {each["metadata"]["name"] for each in find_kind(documents, "RayCronJob")}
    for pod in _find_clocks(documents):
        _, *names = pod.spec["containers"][0]["command"]
        if len(names) != 1 or names[0] not in nights:
            yield f"{pod.where}: starts {names}, of {sorted(nights)}"
        given = set(
            _list_rights(
                rule
                for rule in _list_rules_of(documents, pod)
                if set(names) <= set(rule.get("resourceNames") or names)
            )
        )
        if not given >= RIGHTS:
            yield f"{pod.where}: may not {sorted(RIGHTS - given)}"
        if not _has_token(documents, pod):
            yield f"{pod.where}: has no token"


def secrets_are_referenced(documents: list[Document]) -> Iterator[str]:
    """Secrets are made by hand and named here: no document, setting or variable holds one."""
    for each in documents:
        if each["kind"] == "Secret":
            yield f"Secret {each['metadata']['name']}"
        if found := SECRET_VALUE.search(str(each)):
            yield f"{each['kind']} {each['metadata']['name']}: {found[0]}..."
    for config in find_kind(documents, "ConfigMap"):
        for name in filter(SECRET_NAME.search, config.get("data", {})):
            yield f"ConfigMap {config['metadata']['name']}: {name}"
    for where, container in list_containers(documents):
        for each in container.get("env", ()):
            if SECRET_NAME.search(each["name"]) and "value" in each:
                yield f"{where} {container.get('name')}: {each['name']}"


def _find_clocks(documents: list[Document]) -> list[Pod]:
    """Return the pods that start nights."""
    return [
        pod
        for pod in find_pods(documents)
        if "start-night" in pod.spec["containers"][0].get("command", ())
    ]


def _has_token(documents: list[Document], pod: Pod) -> bool:
    """Return whether a pod is given its account's token: unless it or the account says no."""
    accounts = {each["metadata"]["name"]: each for each in find_kind(documents, "ServiceAccount")}
    account = accounts.get(pod.spec.get("serviceAccountName", ""), {})
    given = account.get("automountServiceAccountToken", True)
    return pod.spec.get("automountServiceAccountToken", given)


def _list_rules_of(documents: list[Document], pod: Pod) -> Iterator[dict[str, Any]]:
    """Yield the rules of the roles that a pod's account is bound to."""
    name = pod.spec.get("serviceAccountName")
    for binding in find_kind(documents, "RoleBinding"):
        if any(
            (each["kind"], each["name"]) == ("ServiceAccount", name)
            and each.get("namespace") == binding["metadata"]["namespace"]
            for each in binding["subjects"]
        ) and (role := _find_role(documents, binding)):
            yield from role["rules"]


def _find_role(documents: list[Document], binding: Document) -> Document | None:
    named = binding["roleRef"]["kind"], binding["roleRef"]["name"]
    for role in find_kind(documents, "Role"):
        if named == ("Role", role["metadata"]["name"]):
            return role
    return None


def _list_rights(rules: Any) -> Iterator[tuple[str, str, str]]:
    for rule in rules:
        for group in rule.get("apiGroups", ("",)):
            for resource in rule.get("resources", rule.get("nonResourceURLs", ())):
                for verb in rule["verbs"]:
                    yield group, resource, verb


RULES: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    pods_are_restricted, accounts_have_least_rights, roles_give_what_is_listed,
    clocks_may_start_nights, secrets_are_referenced,
)  # fmt: skip
