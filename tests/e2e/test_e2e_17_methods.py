"""Each way to tune in real pods, all at once on the tiny model: it completes, and publishes what it should."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from e2e_kube import Kube, is_true
from e2e_world import API_KEY, NAMESPACE, fine_tune_job, gateway_url, model_deployment

STEPS = 12
SMALL_ADAPTER = {"rank": 8, "alpha": 16}
METHODS: dict[str, dict[str, Any]] = {
    "rslora": {"adapter": "LoRA", "lora": SMALL_ADAPTER | {"rankStabilized": True}, "merge": True},
    "qlora": {"adapter": "QLoRA", "lora": SMALL_ADAPTER},
    "dora": {"adapter": "DoRA", "lora": SMALL_ADAPTER},
    "full": {"adapter": "None"},
    "dpo": {"objective": "DPO", "beta": "0.5", "lora": SMALL_ADAPTER},
    "kto": {"objective": "KTO", "beta": "0.5", "lora": SMALL_ADAPTER},
    "classifier": {"task": "SequenceClassification", "lora": SMALL_ADAPTER},
}
DATASETS = {"dpo": "preferences", "kto": "thumbs", "classifier": "classes"}
GATES = {
    "dpo": [{"metric": "rewardAccuracy", "min": "0.5"}],
    "kto": [{"metric": "rewardAccuracy", "min": "0.5"}],
    "classifier": [{"metric": "accuracy", "min": "0.5"}, {"metric": "f1", "min": "0.3"}],
}
RATES = {"full": "3e-3", "dpo": "4e-3", "kto": "4e-3"}
WHOLE = {"rslora", "dora", "full", "classifier"}


def method_job(name: str) -> dict[str, Any]:
    """A short job; gates where the objective has its own score."""
    job = fine_tune_job(name, steps=STEPS)
    spec = job["spec"]
    spec["method"] = METHODS[name]
    spec["training"]["learningRate"] = RATES.get(name, "1e-2")
    if name in DATASETS:
        spec["dataset"] = {"uri": f"hf://datasets/tuneloop/{DATASETS[name]}"}
        spec["training"]["packing"] = name == "classifier"
        spec["evaluation"]["gates"] = GATES[name]
    return job


@pytest.fixture(scope="module")
def jobs(kube: Kube, world: None) -> dict[str, dict[str, Any]]:
    """All jobs, applied at once and seen to their end."""
    kube.apply(*(method_job(name) for name in METHODS))

    def ended(name: str) -> bool:
        found = kube.get("ftj", name, NAMESPACE)
        return is_true(found, "Complete") or is_true(found, "Failed")

    for name in METHODS:
        kube.wait_for(f"'{name}' to end", lambda name=name: ended(name), timeout=900)  # type: ignore[misc]
    return {name: kube.get("ftj", name, NAMESPACE) or {} for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_completes_and_publishes_its_kind(jobs: dict[str, dict[str, Any]], name: str) -> None:
    job = jobs[name]
    assert is_true(job, "Complete"), job["status"]["conditions"]
    assert job["status"]["artifact"]["kind"] == ("Model" if name in WHOLE else "Adapter")
    scores = job["status"]["evaluation"]
    assert scores["tuned"]["evalLoss"] < scores["base"]["evalLoss"]
    assert all(gate["passed"] for gate in scores["gates"])


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_preferences_are_measured_by_rewards(jobs: dict[str, dict[str, Any]], name: str) -> None:
    tuned = jobs[name]["status"]["evaluation"]["tuned"]
    assert tuned["rewardAccuracy"] >= 0.5
    assert tuned["rewardMargin"] > 0
    assert "perplexity" not in tuned


def test_classes_are_measured_by_accuracy(jobs: dict[str, dict[str, Any]]) -> None:
    status = jobs["classifier"]["status"]
    assert status["dataset"]["format"] == "Classification"
    assert status["evaluation"]["tuned"]["accuracy"] >= 0.5


@pytest.fixture
def whole(kube: Kube, jobs: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A deployment of the whole model that a job published; gone afterwards, for engines are large."""
    name = "whole-chat"
    deployment = model_deployment(name, adapters=[])
    deployment["spec"]["model"] = {"fineTuneJob": "full"}
    kube.apply(deployment)
    ready = lambda: is_true(kube.get("mdep", name, NAMESPACE), "Ready")  # noqa: E731
    explain = lambda: str((kube.get("mdep", name, NAMESPACE) or {}).get("status"))  # noqa: E731
    kube.wait_for("the deployment of a whole model to be Ready", ready, timeout=900, explain=explain)
    yield name
    kube.delete("mdep", name, NAMESPACE)


def test_a_whole_model_is_served(kube: Kube, jobs: dict[str, dict[str, Any]], whole: str) -> None:
    status = (kube.get("mdep", whole, NAMESPACE) or {})["status"]
    assert status["model"]["commit"] == jobs["full"]["status"]["artifact"]["digest"]
    client = openai.OpenAI(base_url=f"{gateway_url(kube)}/{NAMESPACE}/v1", api_key=API_KEY, max_retries=0, timeout=300)
    reply = client.chat.completions.create(
        model=whole, messages=[{"role": "user", "content": "What is the colour of thing 3?"}], max_tokens=8
    )
    assert reply.usage
    assert reply.usage.completion_tokens >= 1
