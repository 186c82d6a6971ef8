"""A FineTuneJob that is asked an lm-eval task of its user's own, and whose artifact is copied into another claim."""

import json
from pathlib import Path
from typing import Any

import pytest
from e2e_datasets import QUIZ_ROWS
from e2e_kube import Kube, condition, is_true
from e2e_world import NAMESPACE, adapter_job

from tuneloop_localcluster.paths import cache

NAME, CLAIM = "shared", "exports"
SCORE = "colour-quiz/acc"


@pytest.fixture(scope="module")
def exported(kube: Kube, world: None) -> dict[str, Any]:
    """The job, seen to its end."""
    metadata = {"name": CLAIM, "namespace": NAMESPACE}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    kube.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
    job = adapter_job(NAME)
    evaluation = job["spec"]["evaluation"]
    evaluation["publishSamples"] = False
    evaluation["tasks"] = [{"name": "colour-quiz", "source": {"uri": "hf://datasets/tuneloop/quiz"}}]
    evaluation["gates"].append({"metric": SCORE, "min": "0"})
    job["spec"]["output"] = {"uri": f"pvc://{CLAIM}/models"}
    kube.apply(job)
    kube.wait_for(
        "the exporting job to complete",
        lambda: is_true(kube.get("ftj", NAME, NAMESPACE), "Complete"),
        explain=lambda: str(condition(kube.get("ftj", NAME, NAMESPACE), "Ready")),
    )
    return kube.get("ftj", NAME, NAMESPACE) or {}


def test_status_names_the_copy(exported: dict[str, Any]) -> None:
    artifact = exported["status"]["artifact"]
    assert artifact["uri"] == f"pvc://{CLAIM}/models/{artifact['digest'].removeprefix('sha256:')}"


def test_the_copy_is_the_artifact(kube: Kube, exported: dict[str, Any]) -> None:
    digest = exported["status"]["artifact"]["digest"].removeprefix("sha256:")
    stored = _folder(kube, "tuneloop-store") / "artifacts" / digest
    copied = _folder(kube, CLAIM) / "models" / digest
    assert _contents(copied) == _contents(stored)
    assert {"manifest.json", "evaluation.json", "report.html", "DIGEST"} <= set(_contents(copied))


def test_base_and_tuned_were_asked_the_task(exported: dict[str, Any]) -> None:
    evaluation = exported["status"]["evaluation"]
    for side in ("base", "tuned"):
        right = evaluation[side]["tasks"][SCORE] * QUIZ_ROWS
        assert right == pytest.approx(round(right), abs=0.01), "a share of the rows of the source"
    (gate,) = [gate for gate in evaluation["gates"] if gate["metric"] == SCORE]
    assert gate["passed"]
    assert gate["message"].startswith(f"{SCORE} is ")


def test_the_artifact_tells_the_scores_and_what_was_asked(kube: Kube, exported: dict[str, Any]) -> None:
    digest = exported["status"]["artifact"]["digest"].removeprefix("sha256:")
    artifact = _folder(kube, "tuneloop-store") / "artifacts" / digest
    told = json.loads((artifact / "evaluation.json").read_text())
    said = exported["status"]["evaluation"]["tuned"]["tasks"][SCORE]
    assert told["tuned"]["tasks"][SCORE] == pytest.approx(said, abs=1e-4)
    assert told["taskRows"]["colour-quiz"].startswith("sha256:")
    report = (artifact / "report.html").read_text()
    assert SCORE in report
    assert "Answers side by side" not in report


def test_only_publish_had_the_claim(kube: Kube, exported: dict[str, Any]) -> None:
    holders = {
        job["metadata"]["labels"]["tuneloop.dev/stage"]
        for job in kube.list("jobs", NAMESPACE, f"tuneloop.dev/finetunejob={NAME}")
        for volume in job["spec"]["template"]["spec"]["volumes"]
        if volume.get("persistentVolumeClaim", {}).get("claimName") == CLAIM
    }
    assert holders == {"publish"}


def _folder(kube: Kube, claim: str) -> Path:
    """Where the local cluster keeps a claim's files."""
    return cache().full.volumes / str((kube.get("pvc", claim, NAMESPACE) or {})["spec"]["volumeName"])


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
