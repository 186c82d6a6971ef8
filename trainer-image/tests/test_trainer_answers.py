"""DPO and KTO through the stages as pods run them: they learn, resume exactly, and say what they measured."""

import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pods
import pytest
from rows import preferences, thumbs
from tuneloop_core.stages import Stage

from tuneloop_trainer.loop import Loop
from tuneloop_trainer.objectives import Liked, borrowed, partners
from tuneloop_trainer.progress import Board
from tuneloop_trainer.tokens import Document, Examples, TokenStore, TokenWriter

TRAINING = {"epochs": 3, "tokensPerStep": 512, "learningRate": "4e-3", "packing": False}
PLACES = {"DPO": (Loop, "_pack"), "KTO": (Liked, "measure")}  # where a stop comes
DATA = {"DPO": preferences, "KTO": thumbs}


def prepare(pod: pods.Pod, tiny: Path, objective: str, adapter: str = "LoRA") -> dict[str, Any]:
    """Model and dataset in place and checked; the train stage's input."""
    shutil.copytree(tiny, pod.paths.model, dirs_exist_ok=True)
    pod.write_dataset(*DATA[objective]())
    method = {"objective": objective, "adapter": adapter, "beta": "0.5"}
    pod.succeed(Stage.CHECK, {"dataset": {"uri": "pvc://c/d"}, "method": method, "training": TRAINING})
    evaluation = {**pods.EVALUATION, "gates": [{"metric": "rewardAccuracy", "min": "0.9"}]}
    return {"method": method, "training": TRAINING, "checkpoint": {}, "evaluation": evaluation}


def record_percents(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a poll after each change of the board would see."""
    found, original = list[int](), Board.update

    def update(self: Board, *args: Any, **values: Any) -> None:
        original(self, *args, **values)
        found.append(self.snapshot().percent)

    monkeypatch.setattr(Board, "update", update)
    return found


@pytest.mark.parametrize("adapter", ["LoRA", "None"])
@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_what_is_liked_is_learnt(
    bare_pod: pods.Pod, tiny: Path, monkeypatch: pytest.MonkeyPatch, objective: str, adapter: str
) -> None:
    pod, stage_input = bare_pod, prepare(bare_pod, tiny, objective, adapter)
    percents = record_percents(monkeypatch)
    trained = pod.succeed(Stage.TRAIN, stage_input)
    assert percents == sorted(percents), "the base's view of the answers is part of the whole"
    assert len(set(percents)) > 20
    base, tuned = trained["base"], trained["tuned"]
    at_first = {"DPO": np.log(2), "KTO": 0.5}[objective]
    assert base["evalLoss"] == pytest.approx(at_first, abs=1e-4)
    assert tuned["evalLoss"] < 0.8 * base["evalLoss"]
    assert tuned["rewardAccuracy"] >= 0.9
    assert tuned["rewardMargin"] > 0.5
    assert tuned["perplexity"] is None
    assert trained["curve"][0][1] == pytest.approx(at_first, abs=1e-4)  # the model has not moved yet
    assert tuned["generations"] > 0
    spec = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": "pvc://data/d"},
        **{key: stage_input[key] for key in ("method", "training", "evaluation")},
    }
    fetch = {"modelUri": "pvc://m@sha256:0", "modelPath": "models/m", "modelCommit": "sha256:0", "modelBytes": 1}
    published = pod.succeed(Stage.PUBLISH, {"name": "j", "namespace": "t", "spec": spec, "fetch": fetch})
    assert published["kind"] == ("Model" if adapter == "None" else "Adapter")
    assert published["gates"][0]["passed"]
    card = (pod.root / "store" / published["path"] / "README.md").read_text()
    assert f"objective {objective}, beta 0.5" in card
    assert "| Reward accuracy | " in card


@pytest.mark.parametrize(("objective", "adapter"), [("DPO", "LoRA"), ("KTO", "None")])
def test_a_stopped_run_goes_on_exactly(
    bare_pod: pods.Pod, tiny: Path, monkeypatch: pytest.MonkeyPatch, objective: str, adapter: str
) -> None:
    monkeypatch.setattr("tuneloop_trainer.train.PACK_TOKENS", {"cpu": 128})
    pod, stage_input = bare_pod, prepare(bare_pod, tiny, objective, adapter)
    whole = pod.succeed(Stage.TRAIN, stage_input)
    (pod.paths.work / "train").rename(pod.paths.work / "uninterrupted")
    place, name = PLACES[objective]
    original, seen = getattr(place, name), itertools.count()

    def counted(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        if next(seen) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(place, name, counted)
        assert pod.run(Stage.TRAIN, stage_input)[0] == 143
    assert next(seen) == 10, "the stop is obeyed before anything else is computed"
    resumed = pod.succeed(Stage.TRAIN, stage_input)
    assert resumed["resumes"] == 1
    assert (resumed["curve"], resumed["base"], resumed["tuned"]) == (whole["curve"], whole["base"], whole["tuned"])


def test_rows_of_the_wrong_form_are_told(bare_pod: pods.Pod, tiny: Path) -> None:
    shutil.copytree(tiny, bare_pod.paths.model, dirs_exist_ok=True)
    bare_pod.write_dataset(*preferences())
    stage_input = {"dataset": {"uri": "pvc://c/d"}, "method": {"objective": "KTO"}, "training": TRAINING}
    code, termination = bare_pod.run(Stage.CHECK, stage_input)
    assert (code, termination.reason) == (42, "DatasetInvalid")
    assert "KTO" in termination.message


def test_everyone_has_another_partner() -> None:
    found = partners(17, seed=3)
    assert sorted(found) == list(range(17))
    assert all(found[number] != number for number in range(17))
    assert partners(1, seed=3).tolist() == [0]


def test_an_answer_is_borrowed_whole() -> None:
    own = Document(np.array([1, 2, 3, 4], dtype=np.int32), np.array([0, 0, 1, 1], dtype=np.uint8))
    other = Document(np.array([5, 6, 7], dtype=np.int32), np.array([0, 1, 1], dtype=np.uint8))
    found = borrowed(own, other)
    assert (found.ids.tolist(), found.trained.tolist()) == ([1, 2, 6, 7], [0, 0, 1, 1])


def test_examples_are_documents_in_groups(tmp_path: Path) -> None:
    with TokenWriter(tmp_path) as writer:
        for length in (1, 2, 3, 4):
            writer.append([length] * length, [1] * length)
    pairs = Examples(TokenStore(tmp_path), 2)
    assert pairs.lengths.tolist() == [3, 7]
    assert [len(document.ids) for document in pairs.flat([1, 0])] == [3, 4, 1, 2]
    assert len(pairs) == 2
