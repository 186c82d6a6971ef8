"""The CRDs as users meet them: applying, defaults, columns, explain, scale, status."""

import json
from pathlib import Path
from typing import Any

import crd_rules
import pytest

from tuneloop_core.api import AdapterStatus, FineTuneJob, ModelDeployment, ModelDeploymentStatus, ServedName

pytestmark = pytest.mark.usefixtures("crds")

EXAMPLES = sorted((crd_rules.ROOT / "examples").glob("*.yaml"))


def make(kubectl: Any, namespace: str, manifest: dict[str, Any], *options: str) -> dict[str, Any]:
    """Create or change the object; what the API server holds then. JSON: PyYAML writes the text 2e-4 as a number."""
    made = kubectl("apply", "-n", namespace, "-f", "-", "-o", "json", *options, stdin=json.dumps(manifest))
    found: dict[str, Any] = json.loads(made)
    return found


def named(plural: str, name: str, **changes: Any) -> dict[str, Any]:
    """The smallest manifest under a name."""
    return crd_rules.changed(crd_rules.MINIMAL[plural], {"metadata.name": name, **changes})


def refused(kubectl: Any, namespace: str, manifest: dict[str, Any]) -> str:
    """The words of the refusal."""
    with pytest.raises(AssertionError) as error:
        make(kubectl, namespace, manifest, "--dry-run=server")
    return str(error.value)


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_applies_client_side_and_server_side(kubectl: Any, plural: str) -> None:
    path = str(crd_rules.ROOT / "crds" / f"{plural}.tuneloop.dev.yaml")
    kubectl("apply", "-f", path)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", path)
    held = json.loads(kubectl("get", "crd", f"{plural}.tuneloop.dev", "-o", "json"))
    conditions = {condition["type"]: condition for condition in held["status"]["conditions"]}
    assert conditions["Established"]["status"] == "True"
    assert "NonStructuralSchema" not in conditions


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_accepted(kubectl: Any, namespace: str, path: Path) -> None:
    kubectl("create", "-n", namespace, "--dry-run=server", "--validate=strict", "-f", str(path))


def test_there_are_examples() -> None:
    assert {path.name for path in EXAMPLES} >= {"finetunejob.yaml", "modeldeployment.yaml"}


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_defaults_are_those_of_the_models(kubectl: Any, namespace: str, plural: str) -> None:
    model = {"finetunejobs": FineTuneJob, "modeldeployments": ModelDeployment}[plural]
    manifest = named(plural, "defaults")
    held = make(kubectl, namespace, manifest)
    assert model.model_validate(held).spec == model.model_validate(manifest).spec
    assert held["status"] == {"observedGeneration": -1}
    assert "output" not in held["spec"]


def test_a_share_is_held_out_only_where_no_files_are_named(kubectl: Any, namespace: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "share": {},
        "empty": {"spec.dataset.validation": {}},
        "files": {"spec.dataset.validation.files": ["held-out/*.jsonl"]},
    }
    held = {
        name: make(kubectl, namespace, named("finetunejobs", f"held-{name}", **each)) for name, each in changes.items()
    }
    assert {name: each["spec"]["dataset"]["validation"] for name, each in held.items()} == {
        "share": {"fraction": "0.1"},
        "empty": {},
        "files": {"files": ["held-out/*.jsonl"]},
    }
    assert [FineTuneJob.model_validate(each).spec.dataset.validation.named for each in held.values()] == [0, 0, 1]


def test_a_spec_written_out_in_full_is_accepted(kubectl: Any, namespace: str) -> None:
    """What ``to_dict`` writes may be sent back: empty text and lists mean the same as absence."""
    manifest = named("finetunejobs", "written-out")
    spec = FineTuneJob.model_validate(manifest).spec.to_dict()
    make(kubectl, namespace, manifest | {"spec": spec}, "--dry-run=server")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec.training.epochs": "three"}, "must be of type integer"),
        ({"spec.training.epochs": -1}, "should be greater than or equal to 1"),
        ({"spec.retries": -1}, "should be greater than or equal to 0"),
        ({"spec.training.learningRate": 0.001}, "must be of type string"),
        ({"spec.method.objective": "PPO"}, 'supported values: "SFT", "DPO", "KTO"'),
        ({"spec.training.epoch": 3}, 'unknown field "spec.training.epoch"'),
        ({"spec.model": None}, "spec.model: Required value"),
        ({"spec.evaluation.gates": [{"metric": "evalLoss", "max": "1"}] * 9}, "must have at most 8 items"),
    ],
)
def test_bad_types_and_bounds(kubectl: Any, namespace: str, changes: dict[str, Any], words: str) -> None:
    assert words in refused(kubectl, namespace, named("finetunejobs", "bad", **changes))


@pytest.mark.parametrize(
    ("path", "item"),
    [
        ("spec.adapters", {"name": "a", "from": {"fineTuneJob": "job"}}),
        ("spec.access.keys", {"name": "a", "hash": "sha256:" + "0" * 64}),
    ],
)
def test_names_in_lists_are_unique(kubectl: Any, namespace: str, path: str, item: dict[str, Any]) -> None:
    assert "Duplicate value" in refused(kubectl, namespace, named("modeldeployments", "twice", **{path: [item, item]}))


def set_status(kubectl: Any, namespace: str, kind: str, name: str, status: dict[str, Any]) -> None:
    """Write the status as the operator does."""
    patch = json.dumps({"status": status})
    kubectl("patch", kind, name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


READY = {
    "type": "Ready",
    "status": "False",
    "reason": "Training",
    "message": "step 12 of 30",
    "lastTransitionTime": "2026-11-23T10:00:00Z",
}


def test_columns_of_a_running_job(kubectl: Any, namespace: str) -> None:
    make(kubectl, namespace, named("finetunejobs", "running"))
    progress = {"step": 12.5, "totalSteps": 30, "percent": 41, "loss": 3.21, "tokensPerSecond": 231.5, "eta": "3m10s"}
    status = {"observedGeneration": 1, "stage": "Training", "progress": progress, "conditions": [READY]}
    set_status(kubectl, namespace, "ftj", "running", status)
    header, row = kubectl("get", "ftj", "running", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "STAGE", "PERCENT", "LOSS", "TOKENS/S", "ETA", "READY", "REASON", "AGE"]
    assert row.split()[:8] == ["running", "Training", "41", "3.21", "231.5", "3m10s", "False", "Training"]
    wide = kubectl("get", "ftj", "running", "-n", namespace, "-o", "wide")
    assert "step 12 of 30" in wide
    assert "hf://org/name" in wide


def test_columns_of_a_served_model(kubectl: Any, namespace: str) -> None:
    make(kubectl, namespace, named("modeldeployments", "served"))
    url = f"http://gateway/{namespace}/v1"
    status = {
        "observedGeneration": 1,
        "url": url,
        "replicas": 1,
        "readyReplicas": 1,
        "conditions": [READY | {"status": "True", "reason": "Serving"}],
        "latency": {"ttftP95": "512ms", "tpotP95": "48.2ms"},
    }
    set_status(kubectl, namespace, "mdep", "served", status)
    header, row = kubectl("get", "mdep", "served", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "REPLICAS", "URL", "TTFT-P95", "TPOT-P95", "ROLLOUT", "AGE"]
    assert row.split()[:7] == ["served", "True", "Serving", "1", url, "512ms", "48.2ms"]


def test_a_status_is_stored_as_it_was_written(kubectl: Any, namespace: str) -> None:
    """Nothing is filled in, or the operator would see a difference and write again for ever."""
    make(kubectl, namespace, named("finetunejobs", "as-written"))
    status = {"observedGeneration": 1, "stages": [{"name": "fetch", "state": "Pending"}], "progress": {}}
    set_status(kubectl, namespace, "ftj", "as-written", status)
    assert json.loads(kubectl("get", "ftj", "as-written", "-n", namespace, "-o", "json"))["status"] == status


def test_get_by_category(kubectl: Any, namespace: str) -> None:
    make(kubectl, namespace, named("finetunejobs", "by-category"))
    make(kubectl, namespace, named("modeldeployments", "by-category"))
    found = kubectl("get", "tuneloop", "-n", namespace, "-o", "name").split()
    assert {"finetunejob.tuneloop.dev/by-category", "modeldeployment.tuneloop.dev/by-category"} <= set(found)


def test_scale_in_mode_external(kubectl: Any, namespace: str) -> None:
    external = {"spec.scaling": {"mode": "External", "replicas": 1}}
    make(kubectl, namespace, named("modeldeployments", "external", **external))
    kubectl("scale", "mdep", "external", "-n", namespace, "--replicas=3")
    held = json.loads(kubectl("get", "mdep", "external", "-n", namespace, "-o", "json"))
    assert held["spec"]["scaling"]["replicas"] == 3


def test_scale_in_mode_auto_is_refused_in_words(kubectl: Any, namespace: str) -> None:
    make(kubectl, namespace, named("modeldeployments", "auto"))
    with pytest.raises(AssertionError, match="replicas is for mode External"):
        kubectl("scale", "mdep", "auto", "-n", namespace, "--replicas=3")


@pytest.mark.parametrize(("kind", "plural"), [("ftj", "finetunejobs"), ("mdep", "modeldeployments")])
def test_explain_is_the_reference(kubectl: Any, kind: str, plural: str) -> None:
    spec = kubectl("explain", f"{kind}.spec")
    status = kubectl("explain", f"{kind}.status")
    for text in (spec, status):
        assert "<no description>" not in text
    for field in crd_rules.schema(plural)["properties"]["spec"]["properties"]:
        assert field in spec
    assert "observedGeneration" in status


def test_a_full_status_stays_under_64_kib() -> None:
    """The lists that grow with the user's data, filled to their maxima with usual text."""
    digest, name = "sha256:" + "0" * 64, "a-usual-adapter-name-000"
    adapter = AdapterStatus(
        name=name, digest=digest, path=f"artifacts/{'0' * 64}", engine_name=f"{name}@000000000000", state="Ready"
    )
    served = ServedName(name=name, engine_name=f"{name}@000000000000", kind="Adapter", ready=True)
    status = ModelDeploymentStatus(adapters=[adapter] * 128, models=[served] * 129)
    assert len(json.dumps(status.to_dict())) < 64 * 1024
