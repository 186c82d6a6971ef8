"""Messages between parts of different releases: a reader takes what it knows; what people write stays strict."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tuneloop_core import adapterconfig, serving, settings, stages
from tuneloop_core.api import FineTuneJob, ModelDeployment
from tuneloop_core.api.base import SpecModel
from tuneloop_core.serving import AdapterList, GatewayLoad, GuardConfig, ServerConfig, ServerStatus
from tuneloop_core.settings import load_settings
from tuneloop_core.stages import FetchInput, Progress, Reason, StageInput, Termination, TrainResult, Wire

ADAPTER = {"name": "bot", "digest": "sha256:" + "d" * 64, "path": "artifacts/" + "d" * 64}
SCORES = {"evalLoss": 1.0}
TRAINED = {
    "base": SCORES,
    "tuned": SCORES,
    "steps": 1,
    "epochs": 1.0,
    "tokens": 1,
    "seconds": 1.0,
    "tokensPerSecond": 1.0,
    "finalLoss": 1.0,
    "peakMemoryBytes": 1,
    "trainableParameters": 1,
    "totalParameters": 1,
    "resumes": 0,
    "notices": [{"reason": "Tracked", "message": "told"}],
}
MESSAGES: list[tuple[type[Wire], dict[str, Any]]] = [
    (ServerConfig, {"servedName": "chat", "engine": {}}),
    (AdapterList, {"adapters": [ADAPTER]}),
    (GuardConfig, {"issuer": "i", "audience": "a", "jwks": {"keys": []}, "inference": ["x"], "admin": ["y"]}),
    (
        ServerStatus,
        {
            "ready": True,
            "draining": False,
            "model": "chat",
            "adapters": [{"engineName": "bot@1", "state": "Loaded", "message": ""}],
        },
    ),
    (
        GatewayLoad,
        {
            "instance": "g",
            "started": "2026-01-01T00:00:00Z",
            "deployments": [
                {
                    "namespace": "team",
                    "name": "chat",
                    "ttft": {"bounds": [1.0], "counts": [1, 0]},
                    "models": [{"name": "chat", "requests": 3}],
                }
            ],
        },
    ),
    (Progress, {"phase": "Training", "step": 2.0}),
    (TrainResult, TRAINED),
    (Termination, {"stage": "train", "outcome": "Succeeded", "result": {}}),
]


def later(message: Any) -> Any:
    """The message with one key more in every model of it, as a later release may write it."""
    if isinstance(message, list):
        return [later(item) for item in message]
    if not isinstance(message, dict):
        return message
    return {key: value if key in ("jwks", "engine", "result") else later(value) for key, value in message.items()} | {
        "ofALaterRelease": {"a": 1}
    }


@pytest.mark.parametrize(("model", "message"), MESSAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_message_of_a_later_release_is_read(model: type[Wire], message: dict[str, Any]) -> None:
    assert model.model_validate(later(message)) == model.model_validate(message)


def test_a_reason_of_a_later_release_keeps_its_words() -> None:
    said = Termination.model_validate(
        {"stage": "fetch", "outcome": "Failed", "reason": "New", "message": "the hub sang"}
    )
    assert (said.reason, said.message) == (Reason.INTERNAL_ERROR, "the hub sang")


def test_a_stage_is_started_with_nothing_that_its_image_does_not_know() -> None:
    with pytest.raises(ValidationError, match="ofALaterRelease"):
        FetchInput.model_validate({"stage": "fetch", "owner": "x", "ofALaterRelease": 1})


def descendants(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in model.__subclasses__():
        yield child
        yield from descendants(child)


def test_every_model_is_of_one_kind_or_the_other() -> None:
    """A model that forgets the rule by a setting of its own is named here."""
    assert {adapterconfig.AdapterFacts, serving.Adapter, settings.Settings, stages.Notice} <= set(descendants(Wire))
    strict = {model for model in descendants(Wire) if model.model_config["extra"] != "ignore"}
    assert strict == {StageInput, *descendants(StageInput)}
    assert {model for model in descendants(SpecModel) if model.model_config["extra"] != "forbid"} == set()


@pytest.mark.parametrize("kind", [FineTuneJob, ModelDeployment])
def test_what_people_write_stays_strict(kind: type[FineTuneJob | ModelDeployment]) -> None:
    with pytest.raises(ValidationError, match="ofALaterRelease"):
        kind.model_validate({"metadata": {"name": "x"}, "spec": {"ofALaterRelease": 1}})


def test_a_setting_of_a_later_chart_is_named_and_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("{images: {trainer: t, server: s, hub: h}, gateway: {url: 'http://x', shiny: {on: true}}}")
    assert load_settings(file).gateway.url == "http://x"
    assert [record.getMessage().removeprefix(f"{file}: ") for record in caplog.records] == [
        "images.hub is no setting of this release and is ignored",
        "gateway.shiny is no setting of this release and is ignored",
    ]


def test_a_wrong_setting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("{images: {trainer: t, server: s}, resyncSeconds: soon}")
    with pytest.raises(ValidationError, match="resyncSeconds"):
        load_settings(file)
