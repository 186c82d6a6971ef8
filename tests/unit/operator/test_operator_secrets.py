"""Which Secrets a spec may name."""

from typing import Any

import pytest

from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.api.modeldeployment import ModelDeploymentSpec
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.secrets import SecretNotAllowedError, named, require_allowed
from tuneloop_operator.policy.verdicts import State
from tuneloop_operator.reconcile.troubles import verdict_of

TASK = {"name": "quiz", "source": {"uri": "hf://datasets/a/b", "credentialsSecret": "s-task"}}
JOB: dict[str, Any] = {
    "model": {"uri": "hf://org/model", "credentialsSecret": "s-model"},
    "dataset": {
        "uri": "https://example.com/rows.jsonl",
        "credentialsSecret": "s-dataset",
        "validation": {"uri": "s3://bucket/held-out/", "credentialsSecret": "s-held-out"},
    },
    "evaluation": {"tasks": [TASK]},
    "output": {"uri": "s3://bucket/key", "credentialsSecret": "s-output"},
    "tracking": {"mlflow": {"endpoint": "https://mlflow.example.com", "credentialsSecret": "s-mlflow"}},
}
SPEC = FineTuneJobSpec.model_validate(JOB)


def test_every_field_that_names_a_secret_is_found() -> None:
    assert dict(named(SPEC.to_dict())) == {
        "model.credentialsSecret": "s-model",
        "dataset.credentialsSecret": "s-dataset",
        "dataset.validation.credentialsSecret": "s-held-out",
        "evaluation.tasks[0].source.credentialsSecret": "s-task",
        "output.credentialsSecret": "s-output",
        "tracking.mlflow.credentialsSecret": "s-mlflow",
    }
    adapters = [{"name": "bot", "from": {"uri": "hf://org/bot", "credentialsSecret": "s-adapter"}}]
    spec = ModelDeploymentSpec.model_validate({"model": {"uri": "hf://org/model"}, "adapters": adapters})
    assert dict(named(spec.to_dict())) == {"adapters[0].from.credentialsSecret": "s-adapter"}


@pytest.mark.parametrize(
    "patterns", [[], ["s-*"], ["*-model", "s-dataset", "s-held-*", "s-?a*", "s-output", "s-mlflow"]]
)
def test_what_fits_a_pattern_passes(patterns: list[str]) -> None:
    require_allowed(SPEC, patterns)


@pytest.mark.parametrize(
    ("patterns", "field"),
    [
        (["hub-*"], "model.credentialsSecret names Secret s-model"),
        (["s-model"], "dataset.credentialsSecret names Secret s-dataset"),
        (["s-model", "s-d*", "s-held-*"], r"evaluation\.tasks\[0\]\.source\.credentialsSecret names Secret s-task"),
        (["S-*"], "model.credentialsSecret"),
    ],
)
def test_what_fits_none_is_stalled_with_its_field(patterns: list[str], field: str) -> None:
    with pytest.raises(SecretNotAllowedError, match=field) as caught:
        require_allowed(SPEC, patterns)
    verdict = verdict_of(caught.value)
    assert (verdict.state, verdict.reason) == (State.STALLED, reasons.SECRET_NOT_ALLOWED)
    assert ", ".join(patterns) in verdict.message
    assert verdict.look_again, "an administrator may allow it meanwhile"
