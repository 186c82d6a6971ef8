"""The four stages one after the other, as the operator would run them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pods
import torch
from pages import Page
from peft import PeftModel
from safetensors import safe_open
from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.constants import TERMINATION_MESSAGE_LIMIT
from tuneloop_core.stages import FetchResult, Reason, Stage

from tuneloop_trainer.files import is_whole

SPEC = {
    "model": {"uri": "pvc://models/tiny"},
    "dataset": {"uri": "pvc://data/colours"},
    "training": pods.TRAINING,
    "evaluation": {**pods.EVALUATION, "gates": [{"metric": "evalLoss", "ratioToBaseMax": "0.7"}]},
}
PLANNED = {"steps": 30, "memoryBytes": 2**30, "memory": {"weights": 2**20}, "estimatedDuration": "1m2s"}


def fetch_input() -> dict[str, object]:
    mounts = {"pvcModelPath": "/claims/model", "pvcDatasetPath": "/claims/dataset"}
    return {"model": SPEC["model"], "dataset": SPEC["dataset"], **mounts}


def test_from_two_claims_to_an_artifact_that_peft_loads(bare_pod: pods.Pod, tiny: Path, colours: Path) -> None:
    pod = bare_pod
    shutil.copytree(tiny, pod.root / "claims/model/tiny")
    shutil.copytree(colours, pod.root / "claims/dataset/colours")

    fetched = FetchResult.model_validate(pod.succeed(Stage.FETCH, fetch_input()))
    assert fetched.model_commit.startswith("sha256:")
    shutil.copytree(pod.root / "store" / fetched.model_path, pod.paths.model, dirs_exist_ok=True)
    shutil.copytree(pod.root / "store" / fetched.dataset_path, pod.paths.dataset, dirs_exist_ok=True)

    checked = pod.check()
    assert (checked["format"], checked["template"], checked["rows"]) == ("Chat", "SpanFinder", 48)
    assert 0 < checked["trainedTokens"] < checked["trainTokens"]

    trained = pod.succeed(Stage.TRAIN, {**pod.train_input(), "evaluation": SPEC["evaluation"]})
    assert trained["tuned"]["evalLoss"] < 0.7 * trained["base"]["evalLoss"]
    assert trained["tokens"] == checked["trainTokens"] * 2
    samples = (pod.paths.work / "train/samples.jsonl").read_text().splitlines()
    assert set(json.loads(samples[0])) == {"question", "reference", "base", "tuned"}

    publish_input = {"name": "job", "namespace": "test", "spec": SPEC, "fetch": fetched.model_dump(by_alias=True)}
    publish_input |= {"plan": PLANNED, "usage": {"trainSeconds": 75.0}}
    published = pod.succeed(Stage.PUBLISH, publish_input)
    artifact = pod.root / "store" / published["path"]
    assert is_whole(artifact)
    assert published["digest"] == "sha256:" + artifact.name
    assert [gate["passed"] for gate in published["gates"]] == [True]
    check_artifact(artifact, pod.paths.model, fetched)
    check_report((artifact / "report.html").read_text())
    check_again(pod, json.loads((artifact / "manifest.json").read_text()), artifact)
    assert not (pod.paths.work / "train/checkpoints").exists()

    assert pod.succeed(Stage.PUBLISH, publish_input) == published
    (pod.paths.work / "publish/result.json").unlink()
    assert pod.succeed(Stage.PUBLISH, publish_input)["digest"] == published["digest"]
    check_export(pod, publish_input, artifact)


def check_report(html: str) -> None:
    """The page of a real run: self-contained, and whole."""
    page = Page(html)
    page.require_self_contained()
    titles = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert titles == ["Training loss by step", "Row lengths, training", "Row lengths, validation"]
    for words in ("Base and tuned", "Loss (lower is better)", "Gates", "Answers side by side", "1m2s", "1m15s"):
        assert words in page.text, words
    assert "not measured" not in page.text


def check_export(pod: pods.Pod, publish_input: dict[str, object], artifact: Path) -> None:
    """The same artifact goes elsewhere as well; a target that refuses costs nothing but the export."""
    publish_input = {**publish_input, "spec": {**SPEC, "output": {"uri": "pvc://shared/models"}}}
    (pod.root / "claims/output").mkdir(parents=True)
    (pod.root / "claims/output/models").write_text("in the way")
    code, termination = pod.run(Stage.PUBLISH, publish_input)
    assert (code, termination.reason) == (42, Reason.EXPORT_FAILED)
    assert "pvc://shared/models" in termination.message
    assert is_whole(artifact)

    (pod.root / "claims/output/models").unlink()
    exported = pod.succeed(Stage.PUBLISH, publish_input)
    assert (exported["digest"], exported["exportedUri"]) == (
        f"sha256:{artifact.name}",
        f"pvc://shared/models/{artifact.name}",
    )
    assert is_whole(pod.root / "claims/output/models" / artifact.name)


def check_again(pod: pods.Pod, manifest: dict[str, Any], artifact: Path) -> None:
    """The manifest's own job gives the same adapter to the byte, and refuses other data."""
    job = manifest["job"]
    assert (job["kind"], job["metadata"]) == ("FineTuneJob", {"name": "job"})
    spec = FineTuneJobSpec.model_validate(job["spec"]).to_dict()
    again = pods.Pod(pod.root.with_name("again"), pod.monkeypatch)
    shutil.copytree(pod.root / "claims", again.root / "claims")
    given = fetch_input() | {"model": spec["model"], "dataset": spec["dataset"]}
    fetched = FetchResult.model_validate(again.succeed(Stage.FETCH, given))
    shutil.copytree(again.root / "store" / fetched.model_path, again.paths.model, dirs_exist_ok=True)
    shutil.copytree(again.root / "store" / fetched.dataset_path, again.paths.dataset, dirs_exist_ok=True)
    parts = {name: spec[name] for name in ("method", "training", "evaluation")}
    again.succeed(Stage.CHECK, {**parts, "dataset": spec["dataset"]})
    again.succeed(Stage.TRAIN, {**parts, "checkpoint": spec["checkpoint"]})
    weights = "adapter_model.safetensors"
    assert (again.paths.work / "train/adapter" / weights).read_bytes() == (artifact / weights).read_bytes()
    with next((again.root / "claims/dataset/colours").glob("*.jsonl")).open("a") as rows:
        rows.write("\n")
    shutil.rmtree(again.paths.work / "fetch")  # a new pod, which cannot answer from a result
    code, said = again.run(Stage.FETCH, given)
    assert (code, said.reason) == (42, Reason.DATASET_CHANGED)
    assert spec["dataset"]["digest"] in said.message


def check_artifact(artifact: Path, model: Path, fetched: FetchResult) -> None:
    config = json.loads((artifact / "adapter_config.json").read_text())
    assert (config["bias"], config["modules_to_save"], config["use_dora"]) == ("none", None, False)
    assert config["base_model_name_or_path"] == "pvc://models/tiny"
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["model"]["commit"] == fetched.model_commit
    assert manifest["dataset"]["digest"] == fetched.dataset_digest
    assert manifest["spec"]["training"]["maxSequenceLength"] == 2048
    assert "| Loss (nats per trained token) |" in (artifact / "README.md").read_text()
    names = {path.name for path in artifact.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "evaluation.json", "report.html", "DIGEST"} <= names
    assert not names & {"model.safetensors", "config.json"}
    with safe_open(artifact / "adapter_model.safetensors", "pt") as weights:
        assert all(".lora_" in name for name in weights.keys())  # noqa: SIM118 - not a dict
    check_peft_loads(artifact, model)


def check_peft_loads(artifact: Path, model: Path) -> None:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - slow to import

    base = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.arange(20).unsqueeze(0)
    before = base(ids).logits
    tuned = PeftModel.from_pretrained(base, str(artifact))
    assert not torch.allclose(tuned(ids).logits, before, atol=1e-2)


def test_a_finished_stage_answers_from_its_result(pod: pods.Pod) -> None:
    first = pod.check()
    (pod.paths.dataset / "train.jsonl").write_text("")  # would fail if it were read again
    assert pod.check() == first
    code, termination = pod.run(Stage.CHECK, pod.check_input({**pods.TRAINING, "seed": 8}))
    assert (code, termination.reason) == (42, "DatasetInvalid")


def test_last_words_fit_the_kubelet(pod: pods.Pod) -> None:
    row = {"messages": [{"role": "user", "content": "q " * 300}, {"role": "assistant", "content": "\u00e9" * 3000}]}
    pod.write_dataset(*[row] * 3, {"text": "t"}, *[{"messages": []}] * 50)
    code, _ = pod.run(Stage.CHECK, pod.check_input())
    assert code == 42
    assert len(pod.paths.termination_log.read_bytes()) <= TERMINATION_MESSAGE_LIMIT


def test_an_input_of_another_version_is_told(pod: pods.Pod) -> None:
    code, termination = pod.run(Stage.CHECK, {"nonsense": 1})
    assert (code, termination.reason) == (1, "InternalError")
    assert "Operator and trainer image differ?" in termination.message
