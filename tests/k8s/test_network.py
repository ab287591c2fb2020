"""The NetworkPolicies let through what the README's table of arrows says, and nothing else."""

from __future__ import annotations

import copy
import re
from typing import Any

import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs]
import pytest
import yaml

from tests.support.manifests import (
    K8S,
    Document,
    expand_documents,
    find_clusters,
    find_kind,
    find_pods,
)
from tests.support.network import Party, admits

HERE = "rushes"
HERE_LABELS = {"kubernetes.io/metadata.name": HERE}
ELSEWHERE = {
    "operator": Party(
        {"app.kubernetes.io/name": "kuberay-operator"},
        "kuberay",
        {"kubernetes.io/metadata.name": "kuberay"},
    ),
    "monitoring": Party({}, "monitoring", {"kubernetes.io/metadata.name": "monitoring"}),
    "callers": Party({}, "ingress", {"rushes/calls": "online"}),
    "stranger": Party({}, "default", {"kubernetes.io/metadata.name": "default"}),
    "DNS": Party(
        {"k8s-app": "kube-dns"}, "kube-system", {"kubernetes.io/metadata.name": "kube-system"}
    ),
    "Kubernetes": Party(address="10.96.0.1"),
    "outside": Party(address="52.216.8.27"),
    "metadata": Party(address="169.254.169.254"),
}
ANY = (6379, 10002, 45000)
DNS = 53
SERVE = 8000
"""Serve's port: nobody listens there without an endpoint, so its rules come with that."""
PORTS = (22, 53, 443, 6443, 8000, 8080, 8265, 9000, 10001, 44217, 44227, 52365)

ARROW = re.compile(r"^\| (\w+) \| (\w+) \| ([\d, ]+|any) \|$", re.MULTILINE)


def read_arrows() -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the README's arrows: from, to, ports."""
    text = (K8S / "README.md").read_text("utf-8").partition("## Who talks to whom")[2]
    return [
        (source, target, ANY if ports == "any" else tuple(map(int, ports.split(","))))
        for source, target, ports in ARROW.findall(text)
    ]


def find_parties(documents: list[Document]) -> dict[str, Party]:
    """Return the ends of arrows by name; pods are those that the documents make."""
    parties = dict(ELSEWHERE)
    for pod in find_pods(documents):
        kind = pod.labels.get("ray.io/node-type") or pod.labels["app.kubernetes.io/component"]
        parties[kind] = Party(pod.labels, HERE, HERE_LABELS)
    return parties


def list_open(documents: list[Document]) -> set[tuple[str, str, int]]:
    """Return the connections that the policies let through, of those that are tried."""
    policies = find_kind(documents, "NetworkPolicy")
    parties = find_parties(documents)
    return {
        (source, target, port)
        for source in parties
        for target in parties
        for port in {*PORTS, *ANY}
        if source not in ELSEWHERE or target not in ELSEWHERE
        if source not in ("Kubernetes", "outside", "metadata", "DNS")
        if admits(policies, parties[source], parties[target], port, "UDP" if port == DNS else "TCP")
    }


def list_drawn(documents: list[Document]) -> set[tuple[str, str, int]]:
    """Return the connections that the README draws between this overlay's parties."""
    parties = find_parties(documents)
    everyone = [name for name in parties if name not in ELSEWHERE]
    is_served = bool(find_kind(documents, "RayService"))
    is_scaled = any(
        cluster["enableInTreeAutoscaling"]
        for _, cluster in find_clusters(expand_documents(documents))
    )
    return {
        (each, target, port)
        for source, target, ports in read_arrows()
        for each in (everyone if source == "everyone" else [source])
        if each in parties and target in parties
        for port in ports
        if port != SERVE or is_served
        if (each, target) != ("head", "Kubernetes") or is_scaled
    }


def test_every_arrow_is_let_through(documents: list[Document]) -> None:
    drawn = list_drawn(documents)
    assert drawn
    assert drawn - list_open(documents) == set()


def test_the_operator_reaches_what_it_asks(documents: list[Document]) -> None:
    # KubeRay 1.7: the dashboard; of a RayService's head, Serve's proxy (updateHeadPodServeLabel).
    asked = {8265, SERVE} if find_kind(documents, "RayService") else {8265}
    assert {("operator", "head", port) for port in asked} <= list_open(documents)


def test_nothing_else_is(documents: list[Document]) -> None:
    # Between Ray's own nodes every port is open. Whom the API server's address is, nobody knows:
    # who may talk to Kubernetes may talk to any address by its ports; and all to any for DNS.
    room = {"head", "worker"}
    talkers = {"head", "clock"}
    extra = {
        (source, target, port)
        for source, target, port in list_open(documents) - list_drawn(documents)
        if not {source, target} <= room
        if not (source in talkers and port in (443, 6443))
        if not (source not in ELSEWHERE and port == DNS)
    }
    assert extra == set()


@pytest.mark.parametrize(
    ("policy", "overlay"),
    [
        ("ray", "gpu"), ("storage", "gpu"), ("kubernetes", "gpu"), ("submit", "gpu"),
        ("submitter", "gpu"), ("dns", "gpu"), ("online", "shared"), ("online-health", "shared"),
    ],
)  # fmt: skip
def test_without_a_policy_an_arrow_is_missing(policy: str, overlay: str, build: Any) -> None:
    documents = [
        each
        for each in copy.deepcopy(build(overlay))
        if (each["kind"], each["metadata"]["name"]) != ("NetworkPolicy", policy)
    ]
    assert list_drawn(documents) - list_open(documents)


def test_without_the_default_strangers_get_in(build: Any) -> None:
    documents = [each for each in build("cpu-demo") if each["metadata"]["name"] != "default-deny"]
    assert ("clock", "outside", 22) not in list_open(documents)  # its own policy is one
    assert ("stranger", "clock", 22) in list_open(documents)
    assert ("stranger", "clock", 22) not in list_open(build("cpu-demo"))


NAME_SERVERS = {
    "NodeLocal DNSCache": "169.254.20.10",
    "GKE's Cloud DNS": "169.254.169.254",
    "AKS's LocalDNS": "169.254.10.11",
    "a node's own": "10.0.3.7",
}


@pytest.mark.parametrize("address", NAME_SERVERS.values(), ids=NAME_SERVERS)
def test_dns_may_be_at_any_address(address: str, documents: list[Document]) -> None:
    policies, there = find_kind(documents, "NetworkPolicy"), Party(address=address)
    for pod in find_pods(documents):
        here = Party(pod.labels, HERE, HERE_LABELS)
        assert admits(policies, here, there, DNS, "UDP"), pod.where
        assert admits(policies, here, there, DNS, "TCP"), pod.where
        for port in (80, 8080, 988, 5353):  # the first three are of a node's metadata
            assert not admits(policies, here, there, port, "TCP"), pod.where
            assert not admits(policies, here, there, port, "UDP"), pod.where


@pytest.mark.parametrize("address", ["52.216.8.27", "2600:1fa0:8000::1"])
def test_storage_is_outside(address: str, documents: list[Document]) -> None:
    assert {*list_workers_that_reach(address, documents)} == {True}


@pytest.mark.parametrize(
    "address",
    [
        "10.4.0.9", "100.64.3.7", "100.127.0.1", "172.20.0.1", "192.168.1.1", "169.254.169.254",
        "fd12:3456::1", "fd00:ec2::254", "fe80::1",
    ],
)  # fmt: skip
def test_pods_services_and_metadata_are_not_outside(
    address: str, documents: list[Document]
) -> None:
    assert {*list_workers_that_reach(address, documents)} == {False}


def list_workers_that_reach(address: str, documents: list[Document]) -> list[bool]:
    """Return of each group of workers whether it reaches an address by HTTPS."""
    policies = find_kind(documents, "NetworkPolicy")
    return [
        admits(policies, Party(pod.labels, HERE, HERE_LABELS), Party(address=address), 443)
        for pod in find_pods(documents)
        if pod.labels.get("ray.io/node-type") == "worker"
    ]


@pytest.mark.parametrize(
    ("address", "is_agent"),
    [("169.254.170.23", True), ("fd00:ec2::23", True), ("169.254.169.254", False)],
)
def test_a_component_lets_pods_get_their_rights(address: str, is_agent: bool, build: Any) -> None:
    """From EKS Pod Identity's agent, and never those of the node, from its metadata."""
    policies = find_kind(build("gpu"), "NetworkPolicy")
    text = (K8S / "components" / "identity" / "network.yaml").read_text("utf-8")
    identity = yaml.safe_load(text)
    kubernetes_validate.validate(identity, "1.34", strict=True)
    identity["metadata"]["namespace"] = HERE
    for pod in find_pods(build("gpu")):
        here, there = Party(pod.labels, HERE, HERE_LABELS), Party(address=address)
        assert not admits(policies, here, there, 80)
        assert admits([*policies, identity], here, there, 80) == (is_agent and bool(pod.group))
