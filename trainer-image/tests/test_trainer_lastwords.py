"""Last words always fit the kubelet, and lose what is least missed first."""

import json
from typing import Any

import numpy as np
import pytest
from tuneloop_core.constants import TERMINATION_MESSAGE_LIMIT
from tuneloop_core.stages import CheckResult, FetchResult, PublishResult, Reason, Stage, Termination, TrainResult

from tuneloop_trainer.lastwords import as_json, fitted
from tuneloop_trainer.lmeval.scores import MOST_BYTES, MOST_SCORES

LETTERS = 'aZ_é字𝄞\n"\\\x01'


def text(random: np.random.Generator, most: int) -> str:
    """Any text: characters of one to six bytes in JSON."""
    return "".join(random.choice(list(LETTERS), int(random.integers(0, most + 1))))


def number(random: np.random.Generator) -> float:
    return round(float(random.random() * 10.0 ** int(random.integers(-3, 300))), 6)


def score_names(random: np.random.Generator) -> list[str]:
    """As many and as long as check lets through."""
    names: list[str] = []
    while len(names) < MOST_SCORES:
        names.append(f"task_{len(names)}/" + "m" * int(random.integers(1, 60)))
        if sum(len(json.dumps(name)) for name in names) > MOST_BYTES:
            return names[:-1]
    return names


def trained(random: np.random.Generator, names: list[str], curve: int, notices: int) -> dict[str, Any]:
    scores = {"evalLoss": number(random), "perplexity": number(random), "samples": 10_000, "generations": 1000}
    scores |= {name: number(random) for name in ("exactMatch", "rougeL", "rewardAccuracy", "rewardMargin")}
    sides = ({**scores, "tasks": {name: number(random) for name in names}} for _ in range(2))
    found = dict.fromkeys(("tokens", "peakMemoryBytes", "trainableParameters", "totalParameters"), 10**13)
    return TrainResult.model_validate(
        dict(zip(("base", "tuned"), sides, strict=True))
        | found
        | {"steps": 10**7, "epochs": 999.999, "seconds": 1e7, "tokensPerSecond": 1e6, "finalLoss": number(random)}
        | {"resumes": 9999, "checkpointTime": "2026-11-23T12:00:00Z", "bestStep": 10**7}
        | {"curve": [(step, number(random)) for step in range(curve)]}
        | {"notices": [{"reason": "CheckpointCorrupt", "message": text(random, 256)} for _ in range(notices)]}
    ).model_dump(mode="json", by_alias=True)


def said(stage: Stage, result: dict[str, Any]) -> Termination:
    return Termination(stage=stage, outcome="Succeeded", result=result)


@pytest.mark.parametrize("seed", range(40))
def test_every_result_of_training_fits_with_all_its_scores(seed: int) -> None:
    random = np.random.default_rng(seed)
    names = score_names(random)
    words = said(Stage.TRAIN, trained(random, names, curve=int(random.integers(0, 65)), notices=seed % 5))
    told = fitted(words)
    assert len(as_json(told)) <= TERMINATION_MESSAGE_LIMIT
    assert told.outcome == "Succeeded"
    assert told.result is not None
    found, whole = TrainResult.model_validate(told.result), TrainResult.model_validate(words.result)
    for ours, theirs in ((found.base, whole.base), (found.tuned, whole.tuned)):  # gates are judged by them
        assert ours.tasks == pytest.approx(theirs.tasks, rel=1e-5)
        assert (ours.eval_loss, ours.rouge_l) == pytest.approx((theirs.eval_loss, theirs.rouge_l), rel=1e-5)
    assert Termination.model_validate_json(as_json(told)) == told


@pytest.mark.parametrize("seed", range(20))
def test_every_result_of_the_other_stages_fits(seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = {name: 10**12 for name, field in CheckResult.model_fields.items() if field.annotation is int}
    results = {
        Stage.FETCH: FetchResult(
            model_uri="u" * 600, model_path="p" * 512, model_commit="c" * 80, model_bytes=1, dataset_path="d" * 512
        ),
        Stage.CHECK: CheckResult(**counts, format="Text", template="Markers", example=text(random, 600)),  # type: ignore[arg-type]
        Stage.PUBLISH: PublishResult.model_validate(
            {
                "kind": "Model", "path": "p" * 512, "digest": "d" * 80, "bytes": 1, "exportedUri": "u" * 640,
                "gates": [{"metric": "m" * 128, "passed": True, "message": text(random, 400)}] * 8,
                "notices": [{"reason": "TrackingFailed", "message": text(random, 256)}] * 2,
            }
        ),
    }  # fmt: skip
    for stage, result in results.items():
        told = fitted(said(stage, result.model_dump(mode="json", by_alias=True)))
        assert len(as_json(told)) <= TERMINATION_MESSAGE_LIMIT
        assert told.outcome == "Succeeded"
        type(result).model_validate(told.result)


@pytest.mark.parametrize("seed", range(20))
def test_every_failure_fits(seed: int) -> None:
    words = text(np.random.default_rng(seed), 1024)
    told = fitted(Termination(stage=Stage.CHECK, outcome="Failed", reason=Reason.DATASET_INVALID, message=words))
    assert len(as_json(told)) <= TERMINATION_MESSAGE_LIMIT
    assert told.reason is Reason.DATASET_INVALID
    assert words.startswith(told.message.removesuffix("…"))


def test_what_goes_first() -> None:
    random = np.random.default_rng(1)
    small = trained(random, ["a/b"], curve=3, notices=0)
    assert fitted(said(Stage.TRAIN, small)).result == small, "nothing, where it fits"
    long = trained(random, ["a/b"], curve=64, notices=4)
    told = fitted(said(Stage.TRAIN, long)).result
    assert told is not None
    assert len(told["curve"]) == 16
    assert (told["curve"][0], told["curve"][-1]) == (long["curve"][0], long["curve"][-1])
    assert len(told["notices"]) == 4


def test_a_result_that_cannot_be_told_is_a_failure_and_not_run_for_ever() -> None:
    told = fitted(said(Stage.FETCH, {"modelUri": "u" * 5000}))
    assert (told.outcome, told.reason, told.result) == ("Failed", Reason.INTERNAL_ERROR, None)
    assert "too long" in told.message
