"""What NetworkPolicies let through, by the rules of Kubernetes: all that any one policy admits."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Policy = dict[str, Any]


@dataclass(frozen=True)
class Party:
    """One end of a connection: a pod in a namespace, or an address outside."""

    labels: dict[str, str] = field(default_factory=dict[str, str])
    namespace: str = ""
    namespace_labels: dict[str, str] = field(default_factory=dict[str, str])
    address: str = ""


def admits(
    policies: Iterable[Policy], source: Party, target: Party, port: int, protocol: str = "TCP"
) -> bool:
    """Return whether a connection is let out by the policies of one end, in by the other's."""
    held = list(policies)
    return _lets(held, "Egress", source, target, port, protocol) and _lets(
        held, "Ingress", target, source, port, protocol
    )


def _lets(
    policies: list[Policy], way: str, here: Party, there: Party, port: int, protocol: str
) -> bool:
    mine = [
        each["spec"]
        for each in policies
        if here.namespace == each["metadata"]["namespace"]
        and matches(each["spec"]["podSelector"], here.labels)
        and way in each["spec"]["policyTypes"]
    ]
    peers = "to" if way == "Egress" else "from"
    rules = [rule for spec in mine for rule in spec.get(way.lower(), ())]
    return not mine or any(
        _has_peer(rule.get(peers), here, there) and _has_port(rule.get("ports"), port, protocol)
        for rule in rules
    )


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Return whether a label selector takes these labels."""
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for each in selector.get("matchExpressions", ()):
        is_in = labels.get(each["key"]) in each.get("values", ())
        holds = {
            "In": is_in,
            "NotIn": not is_in,
            "Exists": each["key"] in labels,
            "DoesNotExist": each["key"] not in labels,
        }
        if not holds[each["operator"]]:
            return False
    return True


def _has_peer(peers: list[dict[str, Any]] | None, here: Party, there: Party) -> bool:
    return peers is None or any(_is_peer(each, here, there) for each in peers)


def _is_peer(peer: dict[str, Any], here: Party, there: Party) -> bool:
    if "ipBlock" in peer:
        if not there.address:
            return False
        address, block = ipaddress.ip_address(there.address), peer["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(each) for each in block.get("except", ())
        )
    if there.address:
        return False
    if "namespaceSelector" in peer:
        in_namespace = matches(peer["namespaceSelector"], there.namespace_labels)
    else:
        in_namespace = there.namespace == here.namespace
    return in_namespace and matches(peer.get("podSelector", {}), there.labels)


def _has_port(ports: list[dict[str, Any]] | None, port: int, protocol: str) -> bool:
    return ports is None or any(
        each["port"] == port and each.get("protocol", "TCP") == protocol for each in ports
    )
