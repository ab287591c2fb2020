"""Every call of `rushes` finds what it needs, and each rule finds what breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.support import manifest_calls as rules
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


def test_every_night_renders(documents: list[Document]) -> None:
    assert any(call.words[0] == "render" for call in rules.find_calls(documents))


def edit_entrypoint(documents: list[Document], before: str, after: str) -> None:
    job = job_of(documents)
    assert before in job["entrypoint"]
    job["entrypoint"] = job["entrypoint"].replace(before, after)


def misspell_an_option(documents: list[Document]) -> None:
    edit_entrypoint(documents, "--output", "--outptu")


def misspell_a_command(documents: list[Document]) -> None:
    fetch = head_of(documents)["initContainers"][0]
    fetch["command"] = ["rushes", "fech", "--recipe", "/etc/rushes/recipe.toml"]


def render_alone(documents: list[Document]) -> None:
    edit_entrypoint(documents, "--address auto", "")


def give_way_to_nobody(documents: list[Document]) -> None:
    edit_entrypoint(documents, "--wait", "")


def wait_for_nobody_in_shared(documents: list[Document]) -> None:
    args = clock_of(documents)["containers"][0]["args"]
    args[0] = args[0].replace("--wait", "")


def report_nothing_in_shared(documents: list[Document]) -> None:
    args = clock_of(documents)["containers"][0]["args"]
    args[0] = args[0].replace("--report", "")


def render_another_recipe(documents: list[Document]) -> None:
    edit_entrypoint(documents, "recipe.toml", "recipes.toml")


def mount_the_recipe_elsewhere(documents: list[Document]) -> None:
    (mount,) = (
        each for each in container_of(documents)["volumeMounts"] if each["name"] == "config"
    )
    mount["mountPath"] = "/etc/rush"


def fetch_another_recipe(documents: list[Document]) -> None:
    fetch = head_of(documents)["initContainers"][0]
    fetch["command"] = ["rushes", "fetch", "--recipe", "/etc/rushes/recipes.toml"]


def mount_the_services_recipe_elsewhere(documents: list[Document]) -> None:
    cluster = of_kind(documents, "RayService")["spec"]["rayClusterConfig"]
    pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
    for mount in pod["containers"][0]["volumeMounts"]:
        mount["mountPath"] = mount["mountPath"].replace("/etc/rushes", "/etc/rush")


def edit_application(documents: list[Document], before: str, after: str) -> None:
    spec = of_kind(documents, "RayService")["spec"]
    assert before in spec["serveConfigV2"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(before, after)


def serve_another_recipe(documents: list[Document]) -> None:
    edit_application(documents, "recipe.toml", "recipes.toml")


def look_for_keys_elsewhere(documents: list[Document]) -> None:
    edit_application(documents, "/etc/rushes-keys/", "/etc/rushes-key/")


def serve_to_nowhere(documents: list[Document]) -> None:
    edit_application(documents, "$RUSHES_ONLINE_OUTPUT", "$RUSHES_OUTPUT_ONLINE")


def misspell_a_variable(documents: list[Document]) -> None:
    edit_entrypoint(documents, "$RUSHES_TABLES", "$RUSHES_TABELS")


def misspell_a_setting(documents: list[Document]) -> None:
    settings = of_kind(documents, "ConfigMap", "rushes")["data"]
    settings["RUSHES_OUPTUT"] = settings.pop("RUSHES_OUTPUT")


def send_nothing_with_the_night(documents: list[Document]) -> None:
    del clock_of(documents)["containers"][0]["envFrom"]
    settings = of_kind(documents, "ConfigMap", "rushes")["data"]
    settings |= of_kind(documents, "ConfigMap", "rushes-night")["data"]


def edit_settings_beneath_the_endpoint(documents: list[Document]) -> None:
    del of_kind(documents, "ConfigMap", "rushes")["immutable"]


def edit_the_recipe_beneath_the_endpoint(documents: list[Document]) -> None:
    del of_kind(documents, "ConfigMap", "rushes-recipe")["immutable"]


def keep_the_first_tables(documents: list[Document]) -> None:
    of_kind(documents, "ConfigMap", "rushes-night")["immutable"] = True


def render_without_keys(documents: list[Document]) -> None:
    pod = cluster_of(documents)["workerGroupSpecs"][1]["template"]["spec"]
    given = pod["containers"][0]["envFrom"]
    given[:] = [each for each in given if "rushes-s3" not in str(each)]


def render_without_settings(documents: list[Document]) -> None:
    pod = cluster_of(documents)["workerGroupSpecs"][1]["template"]["spec"]
    del pod["containers"][0]["envFrom"][0]


def fetch_on_no_head(documents: list[Document]) -> None:
    del head_of(documents)["initContainers"]


def fetch_for_no_gang(documents: list[Document]) -> None:
    del cluster_of(documents)["workerGroupSpecs"][2]["template"]["spec"]["initContainers"]


def fetch_into_the_air(documents: list[Document]) -> None:
    mounts = head_of(documents)["initContainers"][0]["volumeMounts"]
    (mount,) = (each for each in mounts if each["name"] == "models")
    mount["name"] = "tmp"


def server_of(documents: list[Document]) -> dict[str, Any]:
    return of_kind(documents, "Deployment", "s3")["spec"]["template"]["spec"]["containers"][0]


def leave_the_server_homeless(documents: list[Document]) -> None:
    environment = server_of(documents)["env"]
    environment[:] = [each for each in environment if each["name"] != "HOME"]


def mount_no_home(documents: list[Document]) -> None:
    mounts = server_of(documents)["volumeMounts"]
    mounts[:] = [each for each in mounts if each["mountPath"] != "/tmp"]


def let_nobody_write_at_home(documents: list[Document]) -> None:
    for mount in server_of(documents)["volumeMounts"]:
        mount["readOnly"] = True


def misspell_a_key(documents: list[Document]) -> None:
    config = of_kind(documents, "ConfigMap", "rushes-recipe")["data"]
    config["recipe.toml"] = config["recipe.toml"].replace("every_s", "evry_s")


def serve_with_fewer_gangs(documents: list[Document]) -> None:
    spec = of_kind(documents, "RayService")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    config["applications"][0]["args"]["overrides"] = ["gangs.0.count=1"]
    spec["serveConfigV2"] = yaml.safe_dump(config)


def render_with_another_pool(documents: list[Document]) -> None:
    job = of_kind(documents, "CronJob")["spec"]["jobTemplate"]["spec"]
    job["template"]["spec"]["containers"][0]["args"][0] += " --set pool.idle_s=60"


MUTATIONS: tuple[tuple[Callable[..., Any], Callable[[list[Document]], None], str], ...] = (
    (rules.commands_parse, misspell_an_option, "gpu"),
    (rules.commands_parse, misspell_a_command, "gpu"),
    (rules.nights_join_their_cluster, render_alone, "gpu"),
    (rules.nights_join_their_cluster, give_way_to_nobody, "gpu"),
    (rules.nights_join_their_cluster, wait_for_nobody_in_shared, "shared"),
    (rules.nights_join_their_cluster, report_nothing_in_shared, "shared"),
    (rules.recipes_load, misspell_a_key, "gpu"),
    (rules.files_are_mounted, render_another_recipe, "gpu"),
    (rules.files_are_mounted, mount_the_recipe_elsewhere, "gpu"),
    (rules.files_are_mounted, fetch_another_recipe, "gpu"),
    (rules.files_are_mounted, serve_another_recipe, "shared"),
    (rules.files_are_mounted, look_for_keys_elsewhere, "shared"),
    (rules.files_are_mounted, mount_the_services_recipe_elsewhere, "shared"),
    (rules.variables_are_given, misspell_a_variable, "gpu"),
    (rules.variables_are_given, misspell_a_setting, "gpu"),
    (rules.variables_are_given, serve_to_nowhere, "shared"),
    (rules.variables_are_given, send_nothing_with_the_night, "shared"),
    (rules.long_lived_configs_stand, edit_settings_beneath_the_endpoint, "shared"),
    (rules.long_lived_configs_stand, edit_the_recipe_beneath_the_endpoint, "shared"),
    (rules.long_lived_configs_stand, keep_the_first_tables, "shared"),
    (rules.nodes_reach_their_storage, render_without_keys, "gpu"),
    (rules.nodes_reach_their_storage, render_without_settings, "gpu"),
    (rules.models_are_fetched, fetch_on_no_head, "gpu"),
    (rules.models_are_fetched, fetch_for_no_gang, "gpu"),
    (rules.models_are_fetched, fetch_into_the_air, "gpu"),
    (rules.others_have_a_home, leave_the_server_homeless, "cpu-demo"),
    (rules.others_have_a_home, mount_no_home, "cpu-demo"),
    (rules.others_have_a_home, let_nobody_write_at_home, "cpu-demo"),
    (rules.one_pool_renders_all, serve_with_fewer_gangs, "shared"),
    (rules.one_pool_renders_all, render_with_another_pool, "shared"),
)


@pytest.mark.parametrize(("rule", "mutate", "overlay"), MUTATIONS)
def test_a_rule_finds(rule: Any, mutate: Any, overlay: str, build: Any) -> None:
    documents = copy.deepcopy(build(overlay))
    mutate(documents)
    assert list(rule(documents))


def test_every_rule_has_a_mutation() -> None:
    assert {rule for rule, _, _ in MUTATIONS} == set(rules.RULES)
