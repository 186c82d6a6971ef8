"""Stage check: what it refuses, with which words, and what it writes."""

import json
from typing import Any

import pods
import pytest
from tuneloop_core.stages import Stage

from tuneloop_trainer.tokens import TokenStore


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def refused(pod: pods.Pod, training: dict[str, Any] | None = None) -> str:
    code, termination = pod.run(Stage.CHECK, pod.check_input(training))
    assert (code, termination.reason) == (42, "DatasetInvalid")
    return termination.message


def test_bad_lines_are_named_and_reported(pod: pods.Pod) -> None:
    pod.write_dataset(chat("q", "a"), {"messages": []}, chat("q", ""))
    message = refused(pod)
    assert message.startswith("2 of 3 rows are bad: train.jsonl line 2: messages is empty; train.jsonl line 3:")
    report = json.loads((pod.paths.work / "check/dataset-report.json").read_text())
    assert (report["bad_rows"], len(report["bad"])) == (2, 2)


def test_an_empty_dataset_is_told(pod: pods.Pod) -> None:
    pod.write_dataset()
    assert "the dataset is empty" in refused(pod)


def test_rows_that_the_template_refuses_are_named(pod: pods.Pod) -> None:
    path = pod.paths.model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    path.write_text(json.dumps(config))
    row = chat("q", "a")
    row["messages"].insert(0, {"role": "system", "content": "s"})
    pod.write_dataset(*[row] * 2)
    assert "train.jsonl line 1: the model's chat template refuses it: no system role" in refused(pod)


def test_conversations_need_a_template(pod: pods.Pod) -> None:
    path = pod.paths.model / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    assert "the model has no chat template" in refused(pod)


def test_answers_behind_the_limit_are_told(pod: pods.Pod) -> None:
    pod.write_dataset(*[chat(f"{number} " + "long " * 50, "a") for number in range(8)])
    assert "longer than maxSequenceLength 32 before their answer begins" in refused(
        pod, {**pods.TRAINING, "maxSequenceLength": 32}
    )


def test_a_single_row_cannot_be_split(pod: pods.Pod) -> None:
    pod.write_dataset(chat("q", "a"))
    assert "no row is left to train on: all of them are held out" in refused(pod)


def test_a_validation_file_is_used_as_it_is(pod: pods.Pod) -> None:
    pod.write_dataset(*[chat(f"q{number}", "a") for number in range(5)])
    pod.write_dataset(chat("v", "b"), chat("w", "c"), name="validation.jsonl")
    result = pod.check()
    assert (result["trainRows"], result["validationRows"]) == (5, 2)
    assert "v" in (pod.paths.data / "validation.jsonl").read_text()


def test_rows_and_tokens_lie_side_by_side(pod: pods.Pod) -> None:
    result = pod.check()
    store = TokenStore(pod.paths.data / "train")
    rows = (pod.paths.data / "train.jsonl").read_text().splitlines()
    assert len(store) == len(rows) == result["trainRows"]
    assert store.lengths.sum() == result["trainTokens"]
    trained = sum(int(store.document(number).trained.sum()) for number in range(len(store)))
    validation = TokenStore(pod.paths.data / "validation")
    trained += sum(int(validation.document(number).trained.sum()) for number in range(len(validation)))
    assert trained >= result["trainedTokens"] > 0


def test_long_rows_are_cut_and_counted(pod: pods.Pod) -> None:
    pod.write_dataset(*[chat(f"q{number}", "word " * 200) for number in range(6)])
    result = pod.check({**pods.TRAINING, "maxSequenceLength": 100})
    assert result["truncatedRows"] == 6
    assert max(TokenStore(pod.paths.data / "train").lengths) == 100
    assert result["maxTokens"] > 100


@pytest.mark.parametrize(
    ("row", "format_", "template"),
    [
        ({"instruction": "Say {}", "output": "Yes."}, "Instruction", "SpanFinder"),
        ({"prompt": "Say {}: ", "completion": "Yes."}, "Completion", "Plain"),
        ({"text": "Say {} and yes."}, "Text", "Plain"),
    ],
)
def test_every_format_becomes_tokens(pod: pods.Pod, row: dict[str, str], format_: str, template: str) -> None:
    pod.write_dataset(*[{key: text.format(number) for key, text in row.items()} for number in range(12)])
    result = pod.check()
    assert (result["format"], result["template"]) == (format_, template)
