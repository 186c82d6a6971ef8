"""Rules that hold for whatever the values are: rights, pod security, settings, names, CRDs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_render import CHART, NAMESPACE, ROOT, Obj, objects, of_kind, run_helm, template

from tuneloop_core import constants
from tuneloop_core.settings import ImageSettings, Settings

INPUTS = sorted((ROOT / "tests" / "golden" / "input").glob("chart-*.yaml"))
TWO_NAMESPACES = (ROOT / "tests" / "golden" / "input" / "chart-two-namespaces.yaml").read_text()


@pytest.fixture(scope="module", params=INPUTS, ids=lambda path: path.stem)
def rendered(request: pytest.FixtureRequest) -> list[Obj]:
    path: Path = request.param
    return objects(path.read_text())


def settings_of(found: list[Obj]) -> Settings:
    (config,) = [obj for obj in of_kind(found, "ConfigMap") if obj["metadata"]["name"] == "tuneloop-settings"]
    return Settings.model_validate(yaml.safe_load(config["data"]["settings.yaml"]), extra="forbid")


def rules_of(found: list[Obj], *names: str) -> list[dict[str, Any]]:
    roles = of_kind(found, "Role", "ClusterRole")
    return [rule for role in roles if not names or role["metadata"]["name"] in names for rule in role["rules"]]


def test_lint_is_clean() -> None:
    done = run_helm("lint", "--strict", str(CHART), values=TWO_NAMESPACES)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- rights --------------------------------------------------------------------------------------------------


def test_nobody_has_a_verb_on_secrets(rendered: list[Obj]) -> None:
    for rule in rules_of(rendered):
        assert "*" not in rule["verbs"] + rule["apiGroups"] + rule["resources"]
        assert not {resource.split("/")[0] for resource in rule["resources"]} & {"secrets", "roles"}


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_tokens_are_made_for_the_own_account_only(rendered: list[Obj], part: str) -> None:
    """Without this right one token would open the servers of all namespaces (docs/adr/0057)."""
    own = f"tuneloop-{part}"
    rule = {"apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [own], "verbs": ["create"]}
    assert rules_of(rendered, f"{own}-tokens") == [rule]
    (binding,) = [b for b in of_kind(rendered, "RoleBinding") if b["metadata"]["name"] == f"{own}-tokens"]
    assert binding["metadata"]["namespace"] == NAMESPACE
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": own, "namespace": NAMESPACE}]
    others = [rule for rule in rules_of(rendered) if any("serviceaccounts" in each for each in rule["resources"])]
    assert len(others) == 2, "one for each, and no other right on service accounts"


def test_nobody_may_delete_the_store_or_run_commands_in_pods(rendered: list[Obj]) -> None:
    for rule in rules_of(rendered):
        if "persistentvolumeclaims" in rule["resources"]:
            assert "delete" not in rule["verbs"]
        assert not {"pods/exec", "pods/attach", "pods/log", "pods/ephemeralcontainers"} & set(rule["resources"])


def test_the_gateway_reads_deployments_and_endpoints_only(rendered: list[Obj]) -> None:
    rules = rules_of(rendered, "tuneloop-gateway")
    assert {resource for rule in rules for resource in rule["resources"]} == {"modeldeployments", "endpointslices"}
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}


def test_rights_lie_only_in_the_listed_namespaces() -> None:
    found = objects(TWO_NAMESPACES)
    places = {
        obj["metadata"]["namespace"]
        for obj in of_kind(found, "Role")
        if not obj["metadata"]["name"].endswith(("leader", "peers", "tokens"))
    }
    assert places == {"team-a", "team-b"}
    bound = [obj["roleRef"]["name"] for obj in of_kind(found, "ClusterRoleBinding")]
    assert bound == ["tuneloop-operator-nodes"]


def test_the_lease_is_named(rendered: list[Obj]) -> None:
    for rule in rules_of(rendered):
        if "leases" in rule["resources"] and rule["verbs"] != ["create"]:
            assert rule["resourceNames"] == ["tuneloop-operator"]


def test_both_scopes_at_once_are_refused() -> None:
    done = template("scope: {clusterWide: true, namespaces: [team-a]}")
    assert done.returncode != 0
    assert "choose one" in done.stderr


# ---- pods ----------------------------------------------------------------------------------------------------


def pods(found: list[Obj]) -> list[Obj]:
    return [obj["spec"]["template"]["spec"] for obj in of_kind(found, "Deployment", "Job", "DaemonSet", "StatefulSet")]


def test_every_pod_is_restricted(rendered: list[Obj]) -> None:
    """The rules of the Pod Security Standard "restricted", and a read-only root."""
    volumes = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert pods(rendered)
    for pod in pods(rendered):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == constants.RUN_AS_ID
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {key for volume in pod["volumes"] for key in volume if key != "name"} <= volumes
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not any("hostPort" in port for port in container.get("ports", []))


def test_every_container_has_requests_and_a_memory_limit(rendered: list[Obj]) -> None:
    for pod in pods(rendered):
        for container in pod["containers"]:
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", ["tuneloop-operator", "tuneloop-gateway"])
def test_a_version_that_does_not_stay_up_replaces_nothing(rendered: list[Obj], name: str) -> None:
    (found,) = [obj for obj in of_kind(rendered, "Deployment") if obj["metadata"]["name"] == name]
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert found["spec"]["minReadySeconds"] >= 10
    assert found["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_no_pod_holds_a_token_for_servers_of_all_namespaces(rendered: list[Obj]) -> None:
    for pod in pods(rendered):
        assert not [volume for volume in pod["volumes"] if "projected" in volume]


def test_a_changed_setting_rolls_the_pods() -> None:
    def checksums(values: str) -> set[str]:
        deployments = of_kind(objects(values), "Deployment")
        return {obj["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for obj in deployments}

    assert len(checksums("store: {size: 1Gi}")) == 1
    assert checksums("store: {size: 1Gi}").isdisjoint(checksums("store: {size: 2Gi}"))


# ---- names and settings --------------------------------------------------------------------------------------


def test_names_are_those_of_the_contract(rendered: list[Obj]) -> None:
    names = {(obj["kind"], obj["metadata"]["name"]) for obj in rendered}
    for kind in ("Deployment", "ServiceAccount", "Service"):
        assert {(kind, "tuneloop-operator"), (kind, "tuneloop-gateway")} <= names
    (service,) = [obj for obj in of_kind(rendered, "Service") if obj["metadata"]["name"] == "tuneloop-gateway"]
    assert [port["port"] for port in service["spec"]["ports"]] == [80]


def test_ports_are_those_of_the_code(rendered: list[Obj]) -> None:
    ports = {
        obj["metadata"]["name"]: {
            port["name"]: port["containerPort"] for port in obj["spec"]["template"]["spec"]["containers"][0]["ports"]
        }
        for obj in of_kind(rendered, "Deployment")
    }
    assert ports == {
        "tuneloop-operator": {
            "metrics": constants.OPERATOR_METRICS_PORT,
            "liveness": constants.OPERATOR_LIVENESS_PORT,
        },
        "tuneloop-gateway": {"http": constants.GATEWAY_PORT, "internal": constants.GATEWAY_INTERNAL_PORT},
    }


def test_no_object_of_the_chart_looks_like_a_child_of_ours(rendered: list[Obj]) -> None:
    for obj in rendered:
        assert obj["metadata"]["labels"][constants.LABEL_MANAGED_BY] != constants.MANAGED_BY


def test_default_settings_are_the_defaults_of_the_code() -> None:
    found = settings_of(objects())
    images = ImageSettings(trainer="docker.io/tuneloop/trainer:0.1.0", server="docker.io/tuneloop/server:0.1.0")
    assert found == Settings(images=images, namespaces=[NAMESPACE])


def test_settings_follow_the_values() -> None:
    found = settings_of(objects(TWO_NAMESPACES))
    assert found.namespaces == ["team-a", "team-b"]
    assert found.cluster_scoped_rights
    assert found.images.trainer == "registry.example.com/ai/trainer:0.1.0-rc.1"
    assert found.images.server.startswith("registry.example.com/ai/server-cpu@sha256:")
    assert found.store.model_dump() == {"storage_class": "fast", "access_mode": "ReadWriteMany", "size": "1Ti"}
    assert found.hub.max_bytes == 500_000_000_000
    assert settings_of(objects("secrets: {allowedNames: [hub-token, 's3-*']}")).secrets.allowed_names == [
        "hub-token",
        "s3-*",
    ]
    assert settings_of(objects("hub: {allowedAddresses: [10.0.0.1/32]}")).hub.allowed_addresses == ["10.0.0.1/32"]
    assert found.plan.currency == "EUR"
    assert [(kind.name, kind.memory_mib, kind.price_per_hour) for kind in found.plan.accelerators] == [
        ("L4", 23034, 0.55)
    ]
    assert found.gateway.url == "https://llm.example.com"
    assert settings_of(objects("scope: {clusterWide: true}")).namespaces == []


# ---- values and CRDs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("gatway: {}", "additional properties 'gatway' not allowed"),
        ("gateway: {replica: 2}", "additional properties 'replica' not allowed"),
        ("store: {accessMode: ReadWriteOncePod}", "/store/accessMode"),
        ("plan: {accelerators: [{name: L4, pricePerHour: 1}]}", "missing properties 'memoryMib', 'bf16Teraflops'"),
        ("plan: {cpuPricePerHour: -1}", "/plan/cpuPricePerHour"),
        ("store: {size: plenty}", "/store/size"),
        ("operator: {replicas: 0}", "/operator/replicas"),
        ("gateway: {url: llm.example.com}", "/gateway/url"),
        ("scope: {namespaces: team-a}", "/scope/namespaces"),
        ("scope: {namespaces: [Team_A]}", "/scope/namespaces/0"),
        ("hub: {refusedAddresses: [10.0.0.1]}", "/hub/refusedAddresses/0"),
        ("hub: {allowedAddresses: [one]}", "/hub/allowedAddresses/0"),
        ("secrets: {allowedNames: [Token]}", "/secrets/allowedNames/0"),
    ],
)
def test_wrong_values_are_refused_by_name(values: str, words: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert words in done.stderr


def closed(schema: Any, path: str = "") -> list[str]:
    """Paths of objects in the schema that neither refuse unknown keys nor say why they are open."""
    if not isinstance(schema, dict):
        return []
    is_open = schema.get("type") == "object" and "additionalProperties" not in schema and "description" not in schema
    inner = [*schema.get("properties", {}).items(), ("[]", schema.get("items"))]
    return [path] * is_open + [found for name, child in inner for found in closed(child, f"{path}/{name}")]


def test_the_schema_is_closed_and_every_value_has_a_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert closed(schema) == []
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, section in values.items():
        assert set(section) == set(schema["properties"][name]["properties"]), name


def load(path: Path) -> Any:
    return yaml.load(path.read_text(), yaml.CSafeLoader)


def test_crds_are_the_generated_ones_and_kept() -> None:
    sources = {path.name: load(path) for path in (ROOT / "crds").glob("*.yaml")}
    found = {f"{obj['metadata']['name']}.yaml": obj for obj in of_kind(objects(), "CustomResourceDefinition")}
    assert found.keys() == sources.keys()
    for name, crd in found.items():
        assert crd["spec"] == sources[name]["spec"]
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    dropped = of_kind(objects("crds: {keep: false}"), "CustomResourceDefinition")
    assert all("helm.sh/resource-policy" not in obj["metadata"].get("annotations", {}) for obj in dropped)
