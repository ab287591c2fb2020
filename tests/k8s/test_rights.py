"""Every overlay keeps the rules of rights and secrets, and each rule finds what breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import manifest_rights as rules
from tests.support.manifest_parts import (
    clock_of,
    cluster_of,
    container_of,
    head_of,
    job_of,
    of_kind,
)
from tests.support.manifests import Document


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_overlays_keep(rule: Callable[..., Any], documents: list[Document]) -> None:
    assert list(rule(documents)) == []


def run_as_root(documents: list[Document]) -> None:
    head_of(documents)["securityContext"]["runAsNonRoot"] = False


def keep_capabilities(documents: list[Document]) -> None:
    del head_of(documents)["containers"][0]["securityContext"]["capabilities"]


def mount_the_host(documents: list[Document]) -> None:
    head_of(documents)["volumes"][0] = {"name": "tmp", "hostPath": {"path": "/tmp"}}


def share_the_hosts_network(documents: list[Document]) -> None:
    head_of(documents)["hostNetwork"] = True


def see_the_hosts_processes(documents: list[Document]) -> None:
    head_of(documents)["hostPID"] = True


def take_the_hosts_port(documents: list[Document]) -> None:
    container_of(documents)["ports"][0]["hostPort"] = 6379


def be_privileged(documents: list[Document]) -> None:
    container_of(documents)["securityContext"]["privileged"] = True


def administer_the_system(documents: list[Document]) -> None:
    container_of(documents)["securityContext"]["capabilities"]["add"] = ["SYS_ADMIN"]


def let_a_container_be_root(documents: list[Document]) -> None:
    container_of(documents)["securityContext"]["runAsUser"] = 0


def confine_a_container_no_more(documents: list[Document]) -> None:
    container_of(documents)["securityContext"]["seccompProfile"] = {"type": "Unconfined"}


def confine_a_pod_no_more(documents: list[Document]) -> None:
    clock_of(documents)["securityContext"]["seccompProfile"] = {"type": "Unconfined"}


def let_the_autoscaler_be_root(documents: list[Document]) -> None:
    cluster_of(documents)["autoscalerOptions"]["securityContext"]["runAsUser"] = 0


def give_workers_a_token(documents: list[Document]) -> None:
    group = cluster_of(documents)["workerGroupSpecs"][1]
    del group["template"]["spec"]["automountServiceAccountToken"]
    group["template"]["spec"]["serviceAccountName"] = "ray-head"


def autoscale_no_more(documents: list[Document]) -> None:
    cluster_of(documents)["enableInTreeAutoscaling"] = False


def role_of(documents: list[Document]) -> list[Any]:
    return of_kind(documents, "Role", "clock")["rules"]


def binding_of(documents: list[Document]) -> Document:
    return of_kind(documents, "RoleBinding", "clock")


def allow_everything(documents: list[Document]) -> None:
    role_of(documents)[0]["verbs"] = ["*"]


def read_secrets(documents: list[Document]) -> None:
    role_of(documents).append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})


def delete_nights(documents: list[Document]) -> None:
    role_of(documents)[1]["verbs"].append("delete")


def administer_the_cluster(documents: list[Document]) -> None:
    documents.append(
        {
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "ray-head"},
            "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "ray-head", "namespace": "rushes"}],
        }
    )


def administer_the_namespace(documents: list[Document]) -> None:
    binding_of(documents)["roleRef"] = {"kind": "ClusterRole", "name": "admin"}


def let_heads_start_nights(documents: list[Document]) -> None:
    head = {"kind": "ServiceAccount", "name": "ray-head", "namespace": "rushes"}
    binding_of(documents)["subjects"].append(head)


def make_no_ray_jobs(documents: list[Document]) -> None:
    role_of(documents).pop()


def read_another_night(documents: list[Document]) -> None:
    role_of(documents)[0]["resourceNames"] = ["nihgt"]


def bind_another_account(documents: list[Document]) -> None:
    binding_of(documents)["subjects"][0]["name"] = "clok"


def bind_another_role(documents: list[Document]) -> None:
    binding_of(documents)["roleRef"]["name"] = "clok"


def have_no_account(documents: list[Document]) -> None:
    del clock_of(documents)["serviceAccountName"]


def have_no_token(documents: list[Document]) -> None:
    clock_of(documents)["automountServiceAccountToken"] = False


def start_another_night(documents: list[Document]) -> None:
    clock_of(documents)["containers"][0]["command"] = ["start-night", "nihgt"]


def say_a_secret(documents: list[Document]) -> None:
    container_of(documents)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "wJalrXUtn"})


def say_a_secret_to_the_autoscaler(documents: list[Document]) -> None:
    options = cluster_of(documents)["autoscalerOptions"]
    options["env"] = [{"name": "RAY_AUTH_TOKEN", "value": "8d969eef"}]


def set_a_secret(documents: list[Document]) -> None:
    of_kind(documents, "ConfigMap", "rushes")["data"]["AWS_SECRET_ACCESS_KEY"] = "wJalrXUtn"


def bring_a_secret(documents: list[Document]) -> None:
    documents.append({"kind": "Secret", "metadata": {"name": "rushes-s3"}, "data": {}})


def run_with_a_secret(documents: list[Document]) -> None:
    job = job_of(documents)
    job["entrypoint"] = job["entrypoint"].replace(
        "exec", "exec env AWS_SECRET_ACCESS_KEY=wJalrXUtn"
    )


def sign_by_what_is_written(documents: list[Document]) -> None:
    of_kind(documents, "ConfigMap", "rushes")["data"]["SIGNED_BY"] = "whsec_MfKQ9r8G"


MUTATIONS: tuple[tuple[Callable[..., Any], Callable[[list[Document]], None], str], ...] = (
    (rules.pods_are_restricted, run_as_root, "gpu"),
    (rules.pods_are_restricted, keep_capabilities, "gpu"),
    (rules.pods_are_restricted, mount_the_host, "gpu"),
    (rules.pods_are_restricted, share_the_hosts_network, "gpu"),
    (rules.pods_are_restricted, see_the_hosts_processes, "gpu"),
    (rules.pods_are_restricted, take_the_hosts_port, "gpu"),
    (rules.pods_are_restricted, be_privileged, "gpu"),
    (rules.pods_are_restricted, administer_the_system, "gpu"),
    (rules.pods_are_restricted, let_a_container_be_root, "gpu"),
    (rules.pods_are_restricted, confine_a_container_no_more, "gpu"),
    (rules.pods_are_restricted, confine_a_pod_no_more, "gpu"),
    (rules.pods_are_restricted, let_the_autoscaler_be_root, "gpu"),
    (rules.accounts_have_least_rights, give_workers_a_token, "gpu"),
    (rules.accounts_have_least_rights, autoscale_no_more, "gpu"),
    (rules.roles_give_what_is_listed, allow_everything, "gpu"),
    (rules.roles_give_what_is_listed, read_secrets, "gpu"),
    (rules.roles_give_what_is_listed, delete_nights, "gpu"),
    (rules.roles_give_what_is_listed, administer_the_cluster, "gpu"),
    (rules.roles_give_what_is_listed, administer_the_namespace, "gpu"),
    (rules.roles_give_what_is_listed, let_heads_start_nights, "gpu"),
    (rules.clocks_may_start_nights, make_no_ray_jobs, "gpu"),
    (rules.clocks_may_start_nights, read_another_night, "gpu"),
    (rules.clocks_may_start_nights, bind_another_account, "gpu"),
    (rules.clocks_may_start_nights, bind_another_role, "gpu"),
    (rules.clocks_may_start_nights, have_no_account, "gpu"),
    (rules.clocks_may_start_nights, have_no_token, "gpu"),
    (rules.clocks_may_start_nights, start_another_night, "gpu"),
    (rules.secrets_are_referenced, say_a_secret, "gpu"),
    (rules.secrets_are_referenced, say_a_secret_to_the_autoscaler, "gpu"),
    (rules.secrets_are_referenced, set_a_secret, "gpu"),
    (rules.secrets_are_referenced, bring_a_secret, "gpu"),
    (rules.secrets_are_referenced, run_with_a_secret, "gpu"),
    (rules.secrets_are_referenced, sign_by_what_is_written, "gpu"),
)


@pytest.mark.parametrize(("rule", "mutate", "overlay"), MUTATIONS)
def test_a_rule_finds(rule: Any, mutate: Any, overlay: str, build: Any) -> None:
    documents = copy.deepcopy(build(overlay))
    mutate(documents)
    assert list(rule(documents))


def test_every_rule_has_a_mutation() -> None:
    assert {rule for rule, _, _ in MUTATIONS} == set(rules.RULES)
