"""Stage publish: put what was trained into the store as an artifact that says what it is and where it came from.

Adapter or whole model, tokenizer, manifest, model card and scores in one folder named by its digest, so that
transformers, PEFT and vLLM load it as it lies there. Never loads the model; the same input gives the same digest.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.constants import FINETUNEJOB_KIND, GROUP, STORE_ARTIFACTS, VERSION
from tuneloop_core.gates import judge
from tuneloop_core.stages import (
    CheckResult,
    FetchResult,
    GateResult,
    PublishInput,
    PublishResult,
    Reason,
    Stage,
    TrainResult,
    Wire,
)

from tuneloop_trainer.card import model_card
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.exports import export
from tuneloop_trainer.files import (
    DIGEST_FILE,
    copy_file,
    folder_aside,
    folder_bytes,
    folder_digest,
    is_whole,
    seal,
    sealed_digest,
)
from tuneloop_trainer.guard import AddressGuard, cluster_guard
from tuneloop_trainer.hub import is_wanted
from tuneloop_trainer.lmeval.sources import task_sources
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.publicspec import public_spec
from tuneloop_trainer.report import report_html
from tuneloop_trainer.reported import report_document
from tuneloop_trainer.stage import read_record
from tuneloop_trainer.tracking import Told, track

log = logging.getLogger("tuneloop")

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
NOT_TOKENIZER = ("config.json", "generation_config.json")


class Manifest(Wire):
    """``manifest.json``: everything needed to say how an artifact came to be, and to make it again."""

    kind: str
    name: str
    namespace: str
    model: dict[str, str]
    dataset: dict[str, Any]
    images: dict[str, str]
    operator_version: str
    spec: dict[str, Any]
    job: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any]


def run(stage_input: PublishInput, paths: Paths, guard: AddressGuard | None = None) -> PublishResult:
    """Assemble the artifact, then export it where the job asks for it; returns where it lies."""
    result = _publish(stage_input, paths)
    spec = FineTuneJobSpec.model_validate(stage_input.spec)
    guard = guard or cluster_guard(stage_input.refused_addresses)
    if spec.output is not None:
        folder = paths.artifacts.parent / result.path
        exported = export(folder, spec.output, paths, guard, stage_input.hub_endpoint)
        result = result.model_copy(update={"exported_uri": exported})
    train = TrainResult.model_validate(_result_of(Stage.TRAIN, paths))
    notices = track(Told(stage_input, public_spec(spec), train, result.digest), paths, guard)
    return result.model_copy(update={"notices": notices})


def holds(earlier: dict[str, Any], paths: Paths) -> bool:
    """Whether the artifact of an earlier run still lies there."""
    result = PublishResult.model_validate(earlier)
    return sealed_digest(paths.artifacts.parent / result.path) == result.digest


def tidy(paths: Paths) -> None:
    """Remove the checkpoints, the largest of what a job leaves; the rest goes with a later fetch (room.py)."""
    shutil.rmtree(paths.work / "train/checkpoints", ignore_errors=True)


def _publish(stage_input: PublishInput, paths: Paths) -> PublishResult:
    check = CheckResult.model_validate(_result_of(Stage.CHECK, paths))
    train = TrainResult.model_validate(_result_of(Stage.TRAIN, paths))
    spec = FineTuneJobSpec.model_validate(stage_input.spec)
    trained = paths.work / ("train/model" if spec.method.publishes_model else "train/adapter")
    if not is_whole(trained):
        raise StageError(Reason.CHECKPOINT_CORRUPT, f"{trained} does not match its digest; the disk may be failing.")
    manifest = _manifest(stage_input, spec, check, train, paths)
    with folder_aside(paths.artifacts) as aside:
        _assemble(aside, trained, paths, manifest)
        _write_report(aside, manifest, stage_input, paths, with_samples=spec.evaluation.publish_samples)
        target = paths.artifacts / folder_digest(aside).removeprefix("sha256:")
        digest = seal(aside, target)
    log.info("published %s", digest)
    path = f"{STORE_ARTIFACTS}/{target.name}"
    return PublishResult(
        kind=_kind(spec), path=path, digest=digest, bytes=folder_bytes(target), gates=gates_of(spec, train)
    )


def gates_of(spec: FineTuneJobSpec, train: TrainResult) -> list[GateResult]:
    """The verdicts, as the operator found them too."""
    return judge(spec.evaluation.gates, train.base, train.tuned)


def _result_of(stage: Stage, paths: Paths) -> dict[str, Any]:
    record = read_record(stage, paths)
    if record is None:
        raise StageError(Reason.INTERNAL_ERROR, f"{paths.result(stage)} is missing: {stage} has not finished here.")
    return record.result


def _kind(spec: FineTuneJobSpec) -> Literal["Adapter", "Model"]:
    return "Model" if spec.method.publishes_model else "Adapter"


def _manifest(
    stage_input: PublishInput, spec: FineTuneJobSpec, check: CheckResult, train: TrainResult, paths: Paths
) -> Manifest:
    fetch = stage_input.fetch
    # Without export and tracker: who else is told does not change what the artifact is, nor its digest.
    told = public_spec(spec).model_copy(update={"output": None, "tracking": None})
    return Manifest(
        kind=_kind(spec),
        name=stage_input.name,
        namespace=stage_input.namespace,
        model={
            "uri": spec.model.uri,
            "revision": spec.model.revision,
            "resolved": fetch.model_uri,
            "commit": fetch.model_commit,
        },
        dataset={
            "uri": told.dataset.uri,
            "digest": fetch.dataset_digest,
            **check.model_dump(mode="json", by_alias=True, exclude={"example", "task_tokens", "task_passes"}),
        },
        images={"trainer": stage_input.trainer_image},
        operator_version=stage_input.operator_version,
        spec=told.to_dict(),
        job=_job(stage_input.name, told, fetch),
        training=train.model_dump(mode="json", by_alias=True, exclude={"base", "tuned", "curve"}),
        evaluation={
            "base": train.base.model_dump(mode="json", by_alias=True),
            "tuned": train.tuned.model_dump(mode="json", by_alias=True),
            "gates": [gate.model_dump(mode="json", by_alias=True) for gate in gates_of(spec, train)],
            "curve": train.curve,
            **task_sources(spec.evaluation.tasks, paths),
        },
    )


def _job(name: str, spec: FineTuneJobSpec, fetch: FetchResult) -> dict[str, Any]:
    """The job as a manifest to apply again: its model at the commit that it was, its dataset by digest."""
    model = spec.model.model_copy(update=_pinned(spec.model.uri, fetch))
    dataset = spec.dataset.model_copy(update={"digest": fetch.dataset_digest})
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": FINETUNEJOB_KIND,
        "metadata": {"name": name},
        "spec": spec.model_copy(update={"model": model, "dataset": dataset, "suspend": False}).to_dict(),
    }


def _pinned(uri: str, fetch: FetchResult) -> dict[str, str]:
    """What makes a model's source name the very model that was fetched, where its scheme can."""
    if uri.startswith("hf://"):
        return {"revision": fetch.model_commit}
    return {"uri": fetch.model_uri} if uri.startswith("oci://") else {}


def _assemble(folder: Path, trained: Path, paths: Paths, manifest: Manifest) -> None:
    if manifest.kind == "Model":
        for path in sorted(trained.iterdir()):
            if path.name != DIGEST_FILE:
                copy_file(path, folder / path.name)
    else:
        copy_file(trained / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
        _write(folder / ADAPTER_CONFIG, _adapter_config(trained / ADAPTER_CONFIG, manifest))
    for path in sorted(paths.model.iterdir()):
        if path.is_file() and is_wanted(path.name) and _is_tokenizer_file(path.name):
            copy_file(path, folder / path.name)
    document = manifest.model_dump(mode="json", by_alias=True)
    _write(folder / "manifest.json", document)
    _write(folder / "evaluation.json", document["evaluation"])
    (folder / "README.md").write_text(model_card(document), encoding="utf-8")


def _write_report(
    folder: Path, manifest: Manifest, stage_input: PublishInput, paths: Paths, *, with_samples: bool
) -> None:
    document = manifest.model_dump(mode="json", by_alias=True)
    document = report_document(document, stage_input.plan, stage_input.usage, paths, with_samples=with_samples)
    (folder / "report.html").write_text(report_html(document), encoding="utf-8")


def _adapter_config(path: Path, manifest: Manifest) -> dict[str, Any]:
    """PEFT's configuration, naming the base by its URI and commit instead of a path in a pod."""
    config: dict[str, Any] = json.loads(path.read_text())
    uri = manifest.model["uri"]
    return {
        **dict(sorted(config.items())),
        "target_modules": sorted(config["target_modules"]),
        "base_model_name_or_path": uri.removeprefix("hf://"),
        "revision": manifest.model["commit"] if uri.startswith("hf://") else None,
    }


def _is_tokenizer_file(name: str) -> bool:
    return not name.endswith((".safetensors", ".safetensors.index.json")) and name not in NOT_TOKENIZER


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
