"""A FineTuneJob whose artifact is copied into another claim of the namespace."""

from pathlib import Path
from typing import Any

import pytest
from e2e_kube import Kube, condition, is_true
from e2e_world import NAMESPACE, adapter_job

from tuneloop_localcluster.paths import cache

NAME, CLAIM = "shared", "exports"


@pytest.fixture(scope="module")
def exported(kube: Kube, world: None) -> dict[str, Any]:
    """The job, seen to its end."""
    metadata = {"name": CLAIM, "namespace": NAMESPACE}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    kube.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
    job = adapter_job(NAME)
    job["spec"]["evaluation"]["publishSamples"] = False
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
    assert "Answers side by side" not in (copied / "report.html").read_text()


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
