"""The API's models and formats: what they read, write and refuse."""

import crd_rules
import pytest
from pydantic import ValidationError

from tuneloop_core.api import (
    FineTuneJob,
    FineTuneJobSpec,
    FineTuneJobStatus,
    LatencyStatus,
    ModelDeployment,
    format_duration,
    format_latency,
    parse_decimal,
    parse_duration,
)
from tuneloop_core.api.crd import immutable_but
from tuneloop_core.api.finetunejob import MUTABLE_FIELDS

MODELS = {"finetunejobs": FineTuneJob, "modeldeployments": ModelDeployment}
ACCEPTED = [case for plural in crd_rules.KINDS for case in crd_rules.cases(plural) if case.accepted]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.title)
def test_models_read_what_the_api_server_accepts(case: crd_rules.Case) -> None:
    model = MODELS[case.plural]
    parsed = model.model_validate(case.manifest)
    again = model.model_validate(case.manifest | {"spec": parsed.spec.to_dict()})
    assert again == parsed


def test_a_spec_refuses_unknown_keys() -> None:
    manifest = crd_rules.changed(crd_rules.MINIMAL["finetunejobs"], {"spec.training.epoch": 1})
    with pytest.raises(ValidationError, match="epoch"):
        FineTuneJob.model_validate(manifest)


def test_a_status_ignores_unknown_keys() -> None:
    assert FineTuneJobStatus.model_validate({"stage": "Training", "newer": 1}).stage == "Training"


def test_a_status_begins_as_not_yet_looked_at() -> None:
    assert FineTuneJobStatus().observed_generation == -1


def test_models_are_frozen() -> None:
    job = FineTuneJob.model_validate(crd_rules.MINIMAL["finetunejobs"])
    with pytest.raises(ValidationError, match="frozen"):
        job.spec.training.epochs = 4  # type: ignore[misc]


def test_names_on_the_wire() -> None:
    latency = LatencyStatus(ttft_p95="48ms", e2e_p95="1250ms").to_dict()
    assert {"ttftP95", "e2eP95", "windowSeconds"} <= latency.keys()


def test_immutability_names_every_other_field() -> None:
    rule = immutable_but(FineTuneJobSpec, MUTABLE_FIELDS)["rule"]
    for field in FineTuneJobSpec.model_fields:
        assert (f"self.{field} == oldSelf.{field}" in rule) == (field not in MUTABLE_FIELDS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("10m", 600), ("4h", 14400), ("1h30m", 5400), ("1.5s", 1.5), ("3m10s", 190)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "1d", "-1s", "1 h", "fast"])
def test_bad_durations_say_what_is_right(text: str) -> None:
    with pytest.raises(ValueError, match='is not a duration; write it such as "500ms"'):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0482, "48.2ms"), (42.4, "42s"), (60, "1m"), (190, "3m10s"), (3599.7, "1h"), (7500, "2h5m")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(0.0482, "48.2ms"), (1.2504, "1250ms"), (0, "0ms")])
def test_latencies(seconds: float, text: str) -> None:
    assert format_latency(seconds) == text


@pytest.mark.parametrize(("text", "number"), [("0.1", 0.1), ("2e-4", 0.0002), ("1E-3", 0.001), ("7", 7)])
def test_decimals(text: str, number: float) -> None:
    assert parse_decimal(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "-1", "nan", "1e", "10%", ".1"])
def test_bad_decimals_say_what_is_right(text: str) -> None:
    with pytest.raises(ValueError, match="is not a non-negative decimal number"):
        parse_decimal(text)
