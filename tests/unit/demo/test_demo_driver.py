"""The demo's decisions and words, without a cluster."""

import hashlib
import json
from pathlib import Path
from typing import Any

import chart_render
import pytest
import yaml

from tuneloop_demo import chart, driver, follow, hub, report
from tuneloop_demo.dataset import Dataset, Row, build
from tuneloop_demo.errors import DemoError
from tuneloop_demo.shell import run
from tuneloop_demo.talk import Answer
from tuneloop_demo.target import Target, as_list, choose, example

IMAGES = {part: f"localhost/tuneloop/{part}:abc" for part in ("operator", "trainer", "server", "hub-mirror")}


def resource(*conditions: tuple[str, str, str, str], generation: int = 1, **status: Any) -> dict[str, Any]:
    found = [
        {"type": kind, "status": value, "reason": reason, "message": message, "observedGeneration": 1}
        for kind, value, reason, message in conditions
    ]
    metadata = {"name": "answers", "namespace": "demo", "generation": generation}
    return {"kind": "FineTuneJob", "metadata": metadata, "status": {"conditions": found, **status}}


# ---- following -------------------------------------------------------------------------------------------------


def test_a_stalled_job_is_trouble_in_its_own_words() -> None:
    stalled = resource(("Stalled", "True", "ModelNotFound", "hf://a/b does not exist; check the spelling"))
    assert follow.trouble(stalled) == (
        "FineTuneJob demo/answers is Stalled (ModelNotFound): hf://a/b does not exist; check the spelling"
    )
    assert follow.trouble(resource(("Stalled", "False", "Calm", ""))) is None


def test_a_condition_about_an_older_spec_counts_for_nothing() -> None:
    assert follow.condition(resource(("Complete", "True", "Published", ""), generation=2), "Complete") is None


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (resource(), "Pending: waiting for the operator"),
        (
            resource(("Reconciling", "True", "Fetching", "fetching hf://a/b"), stage="Fetching"),
            "Fetching: fetching hf://a/b",
        ),
        (
            resource(
                stage="Training",
                progress={
                    "phase": "Training",
                    "percent": 42,
                    "step": 12.5,
                    "totalSteps": 30,
                    "loss": 2.7182,
                    "tokensPerSecond": 231.4,
                    "eta": "3m10s",
                },
            ),
            "Training  42 %  Training  step 12.5/30  loss 2.718  231 tok/s  ETA 3m10s",
        ),
        (
            resource(stage="Training", progress={"phase": "Loading", "percent": 0, "totalSteps": 0}),
            "Training   0 %  Loading",
        ),
    ],
)
def test_job_line(job: dict[str, Any], line: str) -> None:
    assert follow.job_line(job) == line


def test_deployment_line() -> None:
    adapters = [{"name": "kubernetes-api", "state": "Waiting"}]
    waiting = resource(
        ("Reconciling", "True", "Waiting", "waiting for FineTuneJob answers"), replicas=1, adapters=adapters
    )
    assert follow.deployment_line(waiting) == ("0/1 replicas  kubernetes-api Waiting  waiting for FineTuneJob answers")


# ---- what is applied -------------------------------------------------------------------------------------------


def test_the_resource_gets_the_hash_and_never_the_key() -> None:
    key, hashed = driver.new_key()
    manifest = driver.with_key(example("modeldeployment.yaml"), hashed)
    assert manifest["spec"]["access"]["keys"] == [{"name": "demo", "hash": hashed}]
    assert hashed == "sha256:" + hashlib.sha256(key.encode()).hexdigest()
    assert key not in yaml.safe_dump(manifest)
    assert driver.new_key() != (key, hashed)


def test_the_examples_and_the_demo_name_the_same_things() -> None:
    job, deployment = example("finetunejob.yaml"), example("modeldeployment.yaml")
    assert job["spec"]["dataset"]["uri"] == f"hf://datasets/{driver.DATASET_ID}"
    assert job["spec"]["model"]["uri"] == f"hf://{driver.model.MODEL_ID}"
    assert deployment["spec"]["adapters"][0]["from"]["fineTuneJob"] == job["metadata"]["name"]


def test_a_number_in_quotes_stays_a_text() -> None:
    sent = json.loads(as_list([example("finetunejob.yaml")]))
    assert sent["items"][0]["spec"]["training"]["learningRate"] == "1e-3"


def test_the_chart_accepts_the_demos_values() -> None:
    found = chart_render.objects(yaml.safe_dump(chart.values(IMAGES, ["demo"], local=True)))
    (config,) = [obj for obj in found if obj["metadata"]["name"] == "tuneloop-settings"]
    settings = yaml.safe_load(config["data"]["settings.yaml"])
    assert settings["namespaces"] == ["demo"]
    assert settings["hub"]["endpoint"] == hub.ENDPOINT
    assert settings["images"]["trainer"] == IMAGES["trainer"]
    assert settings["simulatedAccelerators"] is True, "the local cluster's accelerators are numbers that a test wrote"


def test_the_mirrors_pod_is_restricted() -> None:
    found = {obj["kind"]: obj for obj in hub.manifests("image")}
    assert found["Namespace"]["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("api/v1", True),
        ("apis/batch/v1", True),
        ("apis/networking.k8s.io/v1", True),
        ("apis/tuneloop.dev/v1alpha1", False),
        ("apis/batch", False),
        ("version", False),
    ],
)
def test_built_in_documents(path: str, expected: bool) -> None:
    assert hub.is_built_in(path) is expected


@pytest.mark.parametrize(
    ("context", "registry", "words"), [("mine", "", "REGISTRY"), ("", "r.example.com/me", "CONTEXT")]
)
def test_context_and_registry_go_together(context: str, registry: str, words: str) -> None:
    with pytest.raises(DemoError, match=words):
        choose(context, registry)


def test_a_failing_program_shows_its_words() -> None:
    with pytest.raises(DemoError, match=r"ended with 3:\nthe cause"):
        run(["sh", "-c", "echo the cause >&2; exit 3"])
    with pytest.raises(DemoError, match="is not there"):
        run(["tuneloop-no-such-program"])


# ---- what is shown ---------------------------------------------------------------------------------------------


def test_questions_are_held_out_and_nested() -> None:
    documents = json.loads((Path(__file__).parent / "openapi_excerpt.json").read_text())
    made = build(documents)
    chosen = driver.questions(made)
    assert len(chosen) == 3
    assert set(chosen) <= set(made.validation)
    rows = [
        Row("n", f"What does the field {path} of a {kind} do?", "x") for path, kind in [("a", "Pod"), ("a.b", "Job")]
    ]
    assert driver.questions(Dataset((), tuple(rows)), 1) == [rows[1]]


def test_scores_stand_side_by_side() -> None:
    evaluation = {
        "base": {"evalLoss": 4.27, "rougeL": 0.1},
        "tuned": {"evalLoss": 2.54, "rougeL": 0.2},
        "gates": [{"metric": "evalLoss", "passed": True, "message": "2.54 is 0.59 of the base's 4.27"}],
    }
    lines = report.scores({"status": {"evaluation": evaluation}}).splitlines()
    assert lines[1].split()[-3:] == ["4.270", "2.540", "-41%"]
    assert lines[2].split()[-3:] == ["0.100", "0.200", "+100%"]
    assert lines[3] == "gate passed: 2.54 is 0.59 of the base's 4.27"


def test_latency_shows_each_model_from_both_sides_and_what_is_missing() -> None:
    given = {"base": [Answer("a", 0.5, 0.05), Answer("b", 0.7, None), Answer("c", 0.6, 0.04)], "tuned": []}
    models = [{"name": "base", "ttftP50": "480ms", "requests": 3}]
    lines = [line.split() for line in report.latency(given, {"status": {"latency": {"models": models}}}).splitlines()]
    assert lines[1:] == [
        ["base", "this", "client", "600", "ms", "40", "ms", "3"],
        ["status.latency", "480ms", "-", "3"],
        ["tuned", "this", "client", "-", "-", "0"],
        ["status.latency", "-", "-", "-"],
    ]
    assert report.latency(given, {}).count("-") > 0


def test_phases_add_up() -> None:
    assert report.phases([("cluster", 61.0), ("chart", 9.0)]).splitlines()[-1].split(maxsplit=2)[-1] == "1 min 10 s"


def test_what_is_to_be_typed_runs_where_kubectl_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local cluster brings its own kubectl, which is on nobody's PATH; a bare machine has no other."""
    own = tmp_path / "my cache" / "kubectl"
    own.parent.mkdir()
    own.write_text("#!/bin/sh\necho $2\n")
    own.chmod(0o755)
    target = Target((str(own), "--kubeconfig", "config"), ())
    monkeypatch.setenv("PATH", "/bin")
    (first, *_) = report.next_steps(target.prefix(), "demo", "answers", "http://gateway", "qa").splitlines()
    assert run(["sh", "-c", first]) == "config\n"
    monkeypatch.setenv("PATH", str(own.parent))
    assert target.prefix() == "kubectl --kubeconfig config"


def test_next_steps_are_three_commands_without_the_key() -> None:
    text = report.next_steps("kubectl --context mine", "demo", "answers", "http://gateway", "kubernetes-api")
    assert len(text.splitlines()) == 3
    assert "$KEY" in text
