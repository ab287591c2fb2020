"""Rules of what pods run: every call of `rushes`, and what it finds where it runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import typer
import yaml

from jobs.cli import app
from pipeline.errors import UsageError
from tests.support.manifests import (
    K8S,
    Document,
    Pod,
    expand_documents,
    find_kind,
    find_pods,
    list_configs,
    list_variables,
    list_words,
    read_recipe,
)

HUB_CACHE = re.findall(r"HF_HOME=(\S+)", (K8S / "Dockerfile").read_text("utf-8"))[0]
"""Where the image looks for models of the hub."""
OUR_IMAGE = "rushes"
WRITABLE = {"emptyDir", "persistentVolumeClaim"}
"""Kinds of volumes that a pod may write into."""
OF_A_NIGHT = {
    "address": "auto",
    "wait": True,
    "ok_if_rejected": True,
    "report": True,
    "log_format": "json",
}
"""It renders on the cluster that is there, after whoever is at its output: k8s/README.md."""


@dataclass(frozen=True)
class Call:
    """A call of `rushes`: its words after that, and where it runs, whoever sent it there."""

    where: str
    words: list[str]
    pod: Pod
    container: dict[str, Any]
    sender: dict[str, Any]
    """The container whose variables fill it in."""

    def find_option(self, name: str) -> str | None:
        """Return what an option is given."""
        return self.words[self.words.index(name) + 1] if name in self.words else None


def commands_parse(documents: list[Document]) -> Iterator[str]:
    """Every `rushes …` is a call that the command understands."""
    for call in find_calls(documents):
        try:
            parse_command(call.words)
        except Exception as error:  # noqa: BLE001 - whatever the parser makes of a wrong call
            yield f"{call.where}: {shlex.join(call.words)}: {type(error).__name__}: {error}"


def nights_join_their_cluster(documents: list[Document]) -> Iterator[str]:
    """A night has the options that it counts on; without the first, its head renders it alone."""
    for call in find_calls(documents):
        if call.words[0] == "render":
            options = parse_command(call.words)
            found = {name: options[name] for name in OF_A_NIGHT}
            if found != OF_A_NIGHT:
                yield f"{call.where}: {found}"


def recipes_load(documents: list[Document]) -> Iterator[str]:
    """The recipe in the ConfigMap is one."""
    try:
        read_recipe(documents)
    except UsageError as error:
        yield str(error)


def files_are_mounted(documents: list[Document]) -> Iterator[str]:
    """A recipe's path is a ConfigMap's key where it is read, and a key file's is in a secret."""
    for call in find_calls(documents):
        if path := call.find_option("--recipe"):
            volume, key = find_file(call.pod, call.container, path)
            if key not in _read_config(documents, volume):
                yield f"{call.where}: no {path} in {call.pod.where}"
    for arguments, pod in _list_applications(documents):
        container = pod.spec["containers"][0]
        volume, key = find_file(pod, container, arguments.get("recipe", ""))
        if key not in _read_config(documents, volume):
            yield f"{pod.where}: no {arguments.get('recipe')}"
        volume, _ = find_file(pod, container, arguments.get("keys", ""))
        if "secret" not in volume:
            yield f"{pod.where}: no secret's {arguments.get('keys')}"


def variables_are_given(documents: list[Document]) -> Iterator[str]:
    """Every `$VARIABLE` of a call, or of an endpoint's output, is set where it is filled in.

    That of a night that joins the endpoint's cluster is sent with it: the head's is as old as that.
    """
    texts = [(call.pod, call.sender, " ".join(call.words)) for call in find_calls(documents)]
    for arguments, pod in _list_applications(documents):
        texts.append((pod, pod.spec["containers"][0], arguments.get("output", "")))
    for pod, container, text in texts:
        given = {*list_variables(container)}
        for each in container.get("envFrom", ()):
            given |= _read_config(documents, {"configMap": each.get("configMapRef", {})}).keys()
        for name in re.findall(r"\$\{?(\w+)", text):
            if name not in given:
                yield f"{pod.where}: no variable {name}"


def nodes_reach_their_storage(documents: list[Document]) -> Iterator[str]:
    """Every Ray node has the storage's settings and keys: workers write what heads account for."""
    for pod in find_pods(documents):
        if pod.group:
            given = str(pod.spec["containers"][0].get("envFrom"))
            if "{'name': 'rushes'}" not in given or "{'name': 'rushes-s3'}" not in given:
                yield f"{pod.where}: {given}"


def models_are_fetched(documents: list[Document]) -> Iterator[str]:
    """A hub's model is fetched before a node begins, into the volume where it is looked for."""
    name = read_recipe(documents).model.checkpoint
    if name.startswith(("package:", ".", "/", "~")):
        return
    fetches = [call for call in find_calls(documents) if call.words[0] == "fetch"]
    for pod in find_pods(documents):
        if pod.group:
            volume, _ = find_file(pod, pod.spec["containers"][0], f"{HUB_CACHE}/hub")
            if "persistentVolumeClaim" not in volume or not any(
                call.pod == pod and find_file(pod, call.container, f"{HUB_CACHE}/hub")[0] == volume
                for call in fetches
            ):
                yield f"{pod.where}: {name} is not fetched into {volume}"


def others_have_a_home(documents: list[Document]) -> Iterator[str]:
    """An image that isn't ours may write into its home, though its root is read only."""
    for pod in find_pods(documents):
        for container in pod.containers:
            if container["image"].rpartition("/")[2].partition(":")[0] == OUR_IMAGE:
                continue
            home = list_variables(container).get("HOME") or ""
            if not may_write(pod, container, f"{home}/"):
                yield f"{pod.where}: {container['image']} has no home that it may write: {home!r}"


def long_lived_configs_stand(documents: list[Document]) -> Iterator[str]:
    """What the endpoint's cluster reads is never edited beneath it where nights join that.

    What a night is sent is: each evening's is the newest.
    """
    pods = find_pods(documents)
    joining = [pod for pod in pods if any(map(is_joining, pod.containers))]
    standing = [pod for pod in pods if joining and pod.where.startswith("RayService")]
    for config in find_kind(documents, "ConfigMap"):
        name, is_fixed = config["metadata"]["name"], config.get("immutable", False)
        for pod in standing:
            if name in list_configs(pod) and not is_fixed:
                yield f"{pod.where}: {name} may be edited"
        for pod in joining:
            if name in list_configs(pod) and is_fixed:
                yield f"{pod.where}: {name} may not be edited"


def one_pool_renders_all(documents: list[Document]) -> Iterator[str]:
    """Who renders the recipe changes nothing of it: on one cluster they then share their gangs."""
    for call in find_calls(documents):
        if "--set" in call.words:
            yield f"{call.where}: --set"
    for arguments, pod in _list_applications(documents):
        if arguments.get("overrides"):
            yield f"{pod.where}: overrides"


RULES: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    commands_parse, nights_join_their_cluster, recipes_load, files_are_mounted,
    variables_are_given, nodes_reach_their_storage, models_are_fetched, others_have_a_home,
    long_lived_configs_stand, one_pool_renders_all,
)  # fmt: skip


def find_calls(documents: list[Document]) -> Iterator[Call]:
    """Yield every call of `rushes` in the documents; what is submitted runs on a head."""
    pods = find_pods(documents)
    heads = {pod.where: pod for pod in pods if pod.labels.get("ray.io/node-type") == "head"}
    for job in find_kind(expand_documents(documents), "RayJob"):
        words, head = shlex.split(job["spec"]["entrypoint"]), heads["RayJob head"]
        (container,) = head.spec["containers"]
        yield Call("entrypoint", _cut(words), head, container, container)
    for pod in pods:
        for container in pod.containers:
            if "rushes" not in (words := list_words(container)):
                continue
            if container.get("command") != ["submit-night"]:
                yield Call(pod.where, _cut(words), pod, container, container)
            else:
                head = heads["RayService head" if is_joining(container) else "RayJob head"]
                (there,) = head.spec["containers"]
                sender = container if is_joining(container) else there
                yield Call(pod.where, _cut(words), head, there, sender)


def is_joining(container: dict[str, Any]) -> bool:
    """Return whether a container submits its night to the endpoint's cluster."""
    return "RAY_DASHBOARD_ADDRESS" in list_variables(container)


def parse_command(words: list[str]) -> dict[str, Any]:
    """Parse a call of `rushes` as the command does, without running it; return its options.

    Raises:
        Exception: it is none.
    """
    group: Any = typer.main.get_command(app)
    name, *rest = words
    return group.commands[name].make_context(name, rest).params


def find_file(pod: Pod, container: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the volume that a container has a path in, empty for none, and the path in that."""
    volumes = {each["name"]: each for each in pod.spec.get("volumes", ())}
    mounts = {each["mountPath"]: each["name"] for each in container.get("volumeMounts", ())}
    for folder in sorted(mounts, key=len, reverse=True):
        if path.startswith(f"{folder}/"):
            return volumes.get(mounts[folder], {}), path.removeprefix(f"{folder}/")
    return {}, path


def may_write(pod: Pod, container: dict[str, Any], path: str) -> bool:
    """Return whether a container may write a path, by its volumes."""
    volume, _ = find_file(pod, container, path)
    mounts = [
        each
        for each in container.get("volumeMounts", ())
        if each["name"] == volume.get("name") and each.get("readOnly")
    ]
    return bool(volume.keys() & WRITABLE) and not mounts


def _cut(words: list[str]) -> list[str]:
    return words[words.index("rushes") + 1 :]


def _list_applications(documents: list[Document]) -> Iterator[tuple[dict[str, Any], Pod]]:
    """Yield the arguments of each RayService's application, and each pod that it may run in."""
    for service in find_kind(documents, "RayService"):
        for each in yaml.safe_load(service["spec"]["serveConfigV2"]).get("applications", ()):
            for pod in find_pods([service]):
                yield each.get("args", {}), pod


def _read_config(documents: list[Document], volume: dict[str, Any]) -> dict[str, str]:
    """Return what the ConfigMap that a volume is made of holds; of another volume, nothing."""
    for each in find_kind(documents, "ConfigMap"):
        if each["metadata"]["name"] == volume.get("configMap", {}).get("name"):
            return each["data"]
    return {}
