"""Stage check on every kind of file and row: what it writes for training, and what it refuses with which words."""

import gzip
import json
from pathlib import Path
from typing import Any

import pods
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tuneloop_core.data.rows import ChatRow, PreferenceRow, UnpairedRow, read_row
from tuneloop_core.stages import Stage

from tuneloop_trainer.encode import EncodeError, Encoder, load_encoder
from tuneloop_trainer.tokens import TokenStore

tiny_model = pods.load_tiny_model()

TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER = {"role": "user", "content": "Warm?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "21", "name": "weather"}
ANSWER = {"role": "assistant", "content": "Mild."}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
COMPLETIONS = [{"prompt": f"Number {number} is ", "completion": f"{number}."} for number in range(20)]


def stage_input(objective: str = "SFT", training: dict[str, Any] | None = None, **dataset: Any) -> dict[str, Any]:
    return {
        "dataset": {"uri": "pvc://claim/data", **dataset},
        "method": {"objective": objective},
        "training": {**pods.TRAINING, "packing": objective == "SFT", **(training or {})},
    }


def refused(pod: pods.Pod, given: dict[str, Any]) -> str:
    code, termination = pod.run(Stage.CHECK, given)
    assert (code, termination.reason) == (42, "DatasetInvalid")
    return termination.message


def report(pod: pods.Pod) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((pod.paths.work / "check/dataset-report.json").read_text())
    return found


def rows(pod: pods.Pod, side: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (pod.paths.data / f"{side}.jsonl").read_text().splitlines()]


def only(pod: pods.Pod, name: str, content: str | bytes) -> None:
    (pod.paths.dataset / "train.jsonl").unlink()
    (pod.paths.dataset / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def trained_text(encoder: Encoder, ids: Any, trained: Any) -> str:
    return str(encoder.tokenizer.decode([token for token, mark in zip(ids, trained, strict=True) if mark]))


@pytest.fixture
def with_tools(tmp_path: Path) -> Encoder:
    return load_encoder(tiny_model.write_tiny_model(tmp_path / "tools", chat_template=TOOL_TEMPLATE))


# ---- files ---------------------------------------------------------------------------------------------------------


def as_csv(values: list[dict[str, str]]) -> str:
    return "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in values)


def as_parquet(folder: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist(COMPLETIONS), folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()


def test_every_kind_of_file_gives_the_same_rows(pod: pods.Pod, tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, COMPLETIONS))
    contents = {
        "rows.jsonl": lines,
        "rows.json": json.dumps(COMPLETIONS, indent=1),
        "rows.csv": as_csv(COMPLETIONS),
        "rows.parquet": as_parquet(tmp_path),
        "rows.jsonl.gz": gzip.compress(lines.encode()),
    }
    found = {}
    for name, content in contents.items():
        for path in pod.paths.dataset.iterdir():
            path.unlink()
        pod.write_dataset()
        only(pod, name, content)
        result = pod.succeed(Stage.CHECK, stage_input())
        found[name] = (result, rows(pod), rows(pod, "validation"))
        (pod.paths.work / "check/result.json").unlink()
    assert all(each == found["rows.jsonl"] for each in found.values())
    assert len(found["rows.csv"][1]) + len(found["rows.csv"][2]) == 20


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.csv", "prompt,completion\na,b\nc\n", "1 of 2 rows is bad: train.csv line 3: has 1 columns, the first"),
        (
            "train.csv",
            b"prompt,completion\na,\xff\n",
            "line 2: completion holds byte 0xff at character 1, which is not UTF-8",
        ),
        ("train.json", '[{"prompt": "p"}]', "train.json item 1: columns prompt match no format"),
        ("train.parquet", b"PAR1", "train.parquet row 1: not readable as Parquet"),
        (
            "train.arrow",
            b"",
            r"no file that is read: .jsonl, .json, .csv, .tsv or .parquet (.gz but for the last) (found",
        ),
    ],
)
def test_bad_files_are_named(pod: pods.Pod, name: str, content: str | bytes, words: str) -> None:
    only(pod, name, content)
    assert words in refused(pod, stage_input())


def test_files_that_were_named_need_no_train_in_their_names(pod: pods.Pod) -> None:
    only(pod, "a.csv", as_csv(COMPLETIONS[:10]))
    (pod.paths.dataset / "b.csv").write_text(as_csv(COMPLETIONS[10:]))
    assert "2 files (a.csv, b.csv) and none is named train.jsonl" in refused(pod, stage_input())
    assert pod.succeed(Stage.CHECK, stage_input(files=["*.csv"]))["rows"] == 20
    assert report(pod)["files"] == ["a.csv", "b.csv"]


def test_columns_of_other_names_are_read_and_reported(pod: pods.Pod) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    pod.write_dataset(*[{"conversations": [{**turns[0], "value": f"q{n}"}, turns[1]]} for n in range(12)])
    columns = {"messages": "conversations", "role": "from", "content": "value"}
    assert "ShareGPT" in refused(pod, stage_input())
    assert pod.succeed(Stage.CHECK, stage_input(columns=columns))["format"] == "Chat"
    assert rows(pod)[0]["messages"][1] == {"role": "assistant", "content": "a"}
    assert report(pod)["columns"] == columns


# ---- what is reported ----------------------------------------------------------------------------------------------


def test_the_report_holds_the_whole_and_the_result_the_gist(pod: pods.Pod) -> None:
    pod.write_dataset(*COMPLETIONS, COMPLETIONS[0], {"prompt": "Long ", "completion": "word " * 200})
    pod.write_dataset({"prompt": "Number 3 is ", "completion": "three."}, *COMPLETIONS[:0], name="validation.jsonl")
    pod.write_dataset(COMPLETIONS[0], name="test.jsonl")
    result = pod.succeed(Stage.CHECK, stage_input(training={"maxSequenceLength": 64}))
    found = report(pod)
    assert (result["duplicateRows"], result["leakedRows"], result["truncatedRows"]) == (1, 1, 1)
    assert (found["duplicates"], found["leaked_rows"], found["copied_rows"]) == (1, 1, 0)
    assert (found["unused_files"], found["counts_exact"], found["objective"]) == (["test.jsonl"], True, "SFT")
    assert (found["train"]["rows"], found["train"]["truncated_share"]) == (22, round(1 / 22, 4))
    packing = found["packing"]
    assert packing["tokens"] == result["trainTokens"] == int(TokenStore(pod.paths.data / "train").lengths.sum())
    assert result["packingEfficiency"] == packing["efficiency"] == round(packing["tokens"] / packing["packs"] / 64, 4)
    assert found["example"] == "Number 0 is 0."


def test_a_validation_set_that_is_the_training_set_is_refused(pod: pods.Pod) -> None:
    pod.write_dataset(*COMPLETIONS)
    pod.write_dataset(*COMPLETIONS[3:9], name="validation.jsonl")
    words = refused(pod, stage_input())
    assert words.startswith("the validation set is the training set: all 6 held-out rows are copies of training rows")
    assert report(pod)["copied_rows"] == 6


def test_a_gate_on_answers_to_texts_that_ask_nothing_is_refused(pod: pods.Pod) -> None:
    pod.write_dataset(*[{"text": f"Text number {n} is a text."} for n in range(24)])
    gates = [{"metric": "evalLoss", "max": "9"}, {"metric": "rougeL", "min": "0.3"}]
    words = refused(pod, stage_input() | {"evaluation": {"gates": gates}})
    assert words.startswith("evaluation.gates: rougeL is not measured on plain text")
    pod.succeed(Stage.CHECK, stage_input() | {"evaluation": {"gates": gates[:1]}})


# ---- objectives ----------------------------------------------------------------------------------------------------


PREFERENCES = [
    {
        "prompt": [{"role": "user", "content": f"Thing {n}?"}],
        "chosen": [ANSWER],
        "rejected": [{**ANSWER, "content": "No."}],
    }
    for n in range(12)
]


def test_a_preference_is_two_documents(pod: pods.Pod) -> None:
    pod.write_dataset(
        *[{"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in PREFERENCES]
    )
    result = pod.succeed(Stage.CHECK, stage_input("DPO"))
    assert (result["format"], result["template"], result["packingEfficiency"]) == ("Preference", "SpanFinder", None)
    lines, store, encoder = rows(pod), TokenStore(pod.paths.data / "train"), load_encoder(pod.paths.model)
    assert len(store) == 2 * len(lines) == 2 * result["trainRows"]
    assert [row for row in PREFERENCES if row in lines] == lines
    texts = [trained_text(encoder, d.ids, d.trained) for d in (store.document(0), store.document(1))]
    assert texts == ["Mild.<|im_end|>", "No.<|im_end|>"]
    row = read_row(lines[0])
    assert isinstance(row, PreferenceRow)
    question = encoder.question(row)
    assert question is not None
    assert (question.text, question.reference) == (lines[0]["prompt"][0]["content"], "Mild.")
    assert store.document(0).ids[: len(question.ids)].tolist() == question.ids


def test_a_preference_of_which_one_answer_is_cut_away_is_left_out(pod: pods.Pod) -> None:
    text = {"prompt": "word " * 20, "chosen": " a", "rejected": " b"}
    pod.write_dataset(*[{**text, "prompt": f"{n}", "chosen": f"a{n}"} for n in range(8)], text)
    result = pod.succeed(Stage.CHECK, stage_input("DPO", {"maxSequenceLength": 16}))
    assert (result["rows"], result["trainRows"] + result["validationRows"], result["truncatedRows"]) == (9, 8, 1)
    assert report(pod)["untrained_rows"] == 1


def test_unpaired_preferences_keep_their_label(pod: pods.Pod) -> None:
    given = [{"prompt": f"p{n}", "completion": " good", "label": n % 2 == 0} for n in range(12)]
    pod.write_dataset(*given)
    result = pod.succeed(Stage.CHECK, stage_input("KTO"))
    assert (result["format"], result["template"]) == ("UnpairedPreference", "Plain")
    assert [row for row in given if row in rows(pod)] == rows(pod)
    assert len(TokenStore(pod.paths.data / "train")) == result["trainRows"]
    assert report(pod)["labels"] == {"true": 6, "false": 6}


@pytest.mark.parametrize(
    ("objective", "row", "words"),
    [
        ("DPO", {"prompt": "p", "completion": "c"}, "the rows are Completion"),
        ("KTO", {"prompt": "p", "chosen": "a", "rejected": "b"}, "objective KTO does not learn from them"),
        ("SFT", {"prompt": "p", "chosen": "a", "rejected": "b"}, "or take objective DPO"),
        ("DPO", {"prompt": "p", "chosen": "a", "rejected": "a"}, "line 1: chosen and rejected are equal"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused(
    pod: pods.Pod, objective: str, row: dict[str, Any], words: str
) -> None:
    pod.write_dataset(*[row] * 3)
    assert words in refused(pod, stage_input(objective))


def test_a_named_format_is_not_guessed(pod: pods.Pod) -> None:
    pod.write_dataset(*[{"text": f"Text {n}", "label": "a"} for n in range(12)])
    assert pod.succeed(Stage.CHECK, stage_input(format="Text"))["format"] == "Text"
    assert "the rows are Classification" in refused(pod, stage_input(format="Classification"))
    assert "line 1: has label, text but no chosen" in refused(pod, stage_input("DPO", format="Preference"))


@pytest.mark.parametrize(("names", "labels"), [(("spam", "ham"), ["ham", "spam"]), ((10, 9), ["9", "10"])])
def test_classes_are_numbered(pod: pods.Pod, names: tuple[Any, Any], labels: list[str]) -> None:
    given = [{"text": f"Text {n}", "label": names[n % 2]} for n in range(12)]
    pod.write_dataset(*given)
    result = pod.succeed(Stage.CHECK, stage_input() | {"method": {"task": "SequenceClassification"}})
    assert (result["format"], result["classes"], result["template"], result["trainedTokens"]) == (
        "Classification",
        2,
        "Plain",
        0,
    )
    assert json.loads((pod.paths.data / "labels.json").read_text()) == labels
    numbered = [{"text": row["text"], "label": labels.index(str(row["label"]))} for row in given]
    assert [row for row in numbered if row in rows(pod)] == rows(pod)
    assert len(TokenStore(pod.paths.data / "train")) == result["trainRows"] == 12 - result["validationRows"]
    assert report(pod)["labels"] == {str(name): 6 for name in names}


# ---- tools ---------------------------------------------------------------------------------------------------------


def test_calls_and_answers_are_trained_and_tools_rendered(with_tools: Encoder) -> None:
    row = ChatRow.of([USER, CALLING, RESULT, ANSWER], TOOLS)
    encoded = with_tools.encode(row)
    call = '<call>{"name": "weather", "arguments": {"city": "Paris"}}</call><|im_end|>'
    assert trained_text(with_tools, encoded.ids, encoded.trained) == call + "Mild.<|im_end|>"
    assert '"parameters": {"type": "object"}' in with_tools.example(row)
    asked = with_tools.question(ChatRow.of([USER, CALLING], TOOLS))
    assert asked is not None
    assert (asked.text, asked.reference) == ("Warm?", call.removesuffix("<|im_end|>"))


def test_answers_with_tools_are_compared(with_tools: Encoder) -> None:
    chosen, rejected = with_tools.documents(PreferenceRow([USER], [CALLING], [ANSWER], TOOLS))
    assert "<call>" in trained_text(with_tools, chosen.ids, chosen.trained)
    assert trained_text(with_tools, rejected.ids, rejected.trained) == "Mild.<|im_end|>"
    assert with_tools.question(UnpairedRow([USER], [ANSWER], label=False)) is None


def test_tools_need_a_template_that_writes_them(pod: pods.Pod) -> None:
    with pytest.raises(EncodeError, match="has tools, but the model's chat template writes none"):
        load_encoder(pod.paths.model).encode(ChatRow.of([USER, ANSWER], TOOLS))
    pod.write_dataset(*[{"messages": [USER, CALLING]}] * 3)
    assert "train.jsonl line 1: the trained part cannot be found: the template does not write tool calls" in refused(
        pod, stage_input()
    )
