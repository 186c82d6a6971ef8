"""evaluation.tasks with the real lm-eval, a tiny model and rows on this machine; nothing is asked of a network."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import hubs
import pods
import pytest
from tuneloop_core.api.evaltasks import EvaluationTask
from tuneloop_core.api.finetunejob import EvaluationSettings
from tuneloop_core.stages import FetchInput, Reason, Stage

from tuneloop_trainer import fetch
from tuneloop_trainer.encode import load_encoder
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import folder_aside, seal
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.lmeval import known, names
from tuneloop_trainer.lmeval.loading import load
from tuneloop_trainer.lmeval.scores import Meter, dry_run
from tuneloop_trainer.paths import Paths

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of lm-eval's dependencies
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ON_LOOPBACK = AddressGuard(allowed=lambda address: address.is_loopback)
COLOURS = """
task: {name}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
ROWS = [{"question": f"which is {n}?", "choices": ["red", "green", "blue"], "answer": n % 3} for n in range(6)]
ARC = [
    {
        "id": str(n),
        "question": "what is warm?",
        "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    for n in range(4)
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_task(folder: Path, name: str = "colours", text: str = COLOURS) -> Path:
    """A source with a task of its own and its rows."""
    write_rows(folder / "test.jsonl", ROWS)
    (folder / f"{name}.yaml").write_text(text.format(name=name))
    return folder


def bring(paths: Paths, guard: AddressGuard = ON_LOOPBACK, hub: str = "", **task: Any) -> None:
    """Fetch one task's rows as the fetch stage does."""
    inputs = {"owner": "FineTuneJob t/j", "tasks": [task], "hubEndpoint": hub}
    fetch.fetch_tasks(FetchInput.model_validate(inputs), paths, guard)


def refusal(paths: Paths, **task: Any) -> str:
    with pytest.raises(StageError) as caught:
        bring(paths, **task)
    assert caught.value.reason in (Reason.DATASET_INVALID, Reason.DATASET_NOT_FOUND)
    return caught.value.message


def evaluation(*gates: dict[str, Any], **task: Any) -> dict[str, Any]:
    return {"generations": 0, "maxSamples": 20, "tasks": [{"name": "colours", **task}], "gates": list(gates)}


def ready(pod: pods.Pod) -> None:
    """A pod whose fetch stage brought the task ``colours``."""
    own_task(pod.paths.claim("task-0") / "evals")
    bring(pod.paths, name="colours", source={"uri": "pvc://claim/evals"})


def test_a_task_of_ones_own_is_asked_of_base_and_tuned_model(pod: pods.Pod) -> None:
    ready(pod)
    settings = evaluation({"metric": "colours/acc", "min": "0"}, fewShot=0)
    checked = pod.succeed(Stage.CHECK, pods.Pod.check_input() | {"evaluation": settings})
    prompts, choices = 6, 3
    assert prompts * choices * 8 < checked["taskTokens"] < prompts * choices * 40, "tokens of all six rows"
    assert checked["taskPasses"] == prompts * choices
    result = pod.succeed(Stage.TRAIN, pods.Pod.train_input(epochs=1) | {"evaluation": settings})
    for side in ("base", "tuned"):
        scores = result[side]["tasks"]
        assert set(scores) == {"colours/acc", "colours/acc_norm"}
        assert all(score * 6 == pytest.approx(round(score * 6), abs=1e-4) for score in scores.values())  # of six rows


def test_a_task_is_tried_in_the_process_of_a_pod(pod: pods.Pod) -> None:
    ready(pod)
    done = pod.process(Stage.CHECK, pods.Pod.check_input() | {"evaluation": evaluation()})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "evaluation.tasks will give colours/acc" in done.stderr + done.stdout


def test_a_gate_on_a_score_that_there_is_not_is_refused_by_check(pod: pods.Pod) -> None:
    ready(pod)
    gate = {"metric": "colours/f1", "min": "0.5"}
    code, said = pod.run(Stage.CHECK, pods.Pod.check_input() | {"evaluation": evaluation(gate)})
    assert (code, said.reason) == (42, Reason.DATASET_INVALID)
    assert "colours/f1 is not measured; of colours there are colours/acc, colours/acc_norm" in said.message


LONG_ANSWERS = """
task: {name}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "red"
generation_kwargs: {{until: ["."], max_gen_toks: %d}}
metric_list: [{{metric: exact_match}}]
"""


def test_answers_that_are_longer_than_the_model_are_refused_by_check(pod: pods.Pod) -> None:
    own_task(pod.paths.claim("task-0") / "evals", text=LONG_ANSWERS % 5000)
    bring(pod.paths, name="colours", source={"uri": "pvc://claim/evals"})
    code, said = pod.run(Stage.CHECK, pods.Pod.check_input() | {"evaluation": evaluation()})
    assert (code, said.reason) == (42, Reason.DATASET_INVALID)
    assert "its answers may have 5000 tokens, and prompt and answer together at most 2048" in said.message


def test_a_generated_answer_costs_its_longest(pod: pods.Pod) -> None:
    own_task(pod.paths.claim("task-0") / "evals", text=LONG_ANSWERS % 100)
    bring(pod.paths, name="colours", source={"uri": "pvc://claim/evals"})
    settings = EvaluationSettings.model_validate(evaluation(limit=5))
    tried = dry_run(settings, load_encoder(pod.paths.model), pod.paths)
    assert tried.names == ["colours/exact_match"]
    assert 5 * 400 < tried.tokens < 5 * 430
    assert tried.passes == 5 * 101


def test_progress_grows_by_what_was_asked_and_not_by_trials() -> None:
    told: list[float] = []
    meter = Meter(200, told.append)
    meter.add(50)
    with meter.paused():
        meter.add(1000)
    meter.add(100)
    meter.add(1000)
    assert told == [0.25, 0.25, 0.75, 1.0]
    Meter(0, told.append).add(1)
    assert told[-1] == 1.0


def test_rows_that_a_task_cannot_ask_are_refused_by_check(pod: pods.Pod) -> None:
    folder = own_task(pod.paths.claim("task-0") / "evals")
    write_rows(folder / "test.jsonl", [{"frage": "was?"}])
    bring(pod.paths, name="colours", source={"uri": "pvc://claim/evals"})
    code, said = pod.run(Stage.CHECK, pods.Pod.check_input() | {"evaluation": evaluation()})
    assert (code, said.reason) == (42, Reason.DATASET_INVALID)
    assert "evaluation.tasks colours: lm-eval cannot ask the rows of its source" in said.message


def test_a_task_of_lm_evals_takes_its_rows_from_the_hub_that_it_names(bare_pod: pods.Pod) -> None:
    splits = "".join(
        f"  - {{split: {each}, path: ARC-Easy/{each}.jsonl}}\n" for each in ("train", "validation", "test")
    )
    card = f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{splits}---\n".encode()
    rows = "".join(json.dumps(row) + "\n" for row in ARC).encode()
    files = {f"ARC-Easy/{each}.jsonl": rows for each in ("train", "validation", "test")}
    state = hubs.HubState()
    state.datasets = {"allenai/ai2_arc": hubs.Repository(files | {"README.md": card, "run.py": b"evil()"})}
    with hubs.serving(partial(hubs.hub_answer, state)) as endpoint:
        bring(bare_pod.paths, hub=endpoint, name="arc_easy")
    task = load(EvaluationTask(name="arc_easy"), bare_pod.paths)["tasks"]["arc_easy"]
    assert len(task.test_docs()) == 4
    assert not (bare_pod.paths.task("arc_easy") / "run.py").exists()
    assert task.doc_to_text(task.test_docs()[0]) == "Question: what is warm?\nAnswer:"


def test_a_repository_without_an_organisation_is_asked_for_as_it_is(bare_pod: pods.Pod) -> None:
    """The oldest datasets have none; a hub knows whose they are now."""
    state = hubs.HubState(datasets={"facebook/xnli": hubs.Repository({"en/test.jsonl": b"{}\n"})})

    def answer(method: str, path: str, headers: dict[str, str]) -> hubs.Answer:
        assert "datasets/xnli/" in path
        return hubs.hub_answer(state, method, path.replace("datasets/xnli/", "datasets/facebook/xnli/"), headers)

    with hubs.serving(answer) as endpoint:
        bring(bare_pod.paths, hub=endpoint, name="xnli_es_spanish_bench")
    assert (bare_pod.paths.task("xnli_es_spanish_bench") / "en/test.jsonl").read_bytes() == b"{}\n"


def test_plain_rows_do_for_a_task_that_the_hub_divides(bare_pod: pods.Pod) -> None:
    write_rows(bare_pod.paths.claim("task-0") / "arc/test.jsonl", ARC)
    bring(bare_pod.paths, name="arc_easy", source={"uri": "pvc://claim/arc/test.jsonl"})
    (task,) = load(EvaluationTask(name="arc_easy", few_shot=0), bare_pod.paths)["tasks"].values()
    assert [row["answerKey"] for row in task.test_docs()] == ["B"] * 4


def test_rows_that_are_a_link_out_of_their_claim_are_refused(bare_pod: pods.Pod) -> None:
    write_rows(bare_pod.paths.claim("task-0") / "arc/inner.jsonl", ARC)
    write_rows(bare_pod.root / "secrets/test.jsonl", ARC)
    link = bare_pod.paths.claim("task-0") / "arc/test.jsonl"
    link.symlink_to(bare_pod.root / "secrets/test.jsonl")
    with pytest.raises(StageError, match=r"test\.jsonl is or lies behind a link that leads out") as caught:
        bring(bare_pod.paths, name="arc_easy", source={"uri": "pvc://claim/arc", "files": ["test.jsonl"]})
    assert caught.value.reason is Reason.URI_REFUSED
    link.unlink()
    link.symlink_to("inner.jsonl")
    bring(bare_pod.paths, name="arc_easy", source={"uri": "pvc://claim/arc", "files": ["test.jsonl"]})
    assert (bare_pod.paths.task("arc_easy") / "test.jsonl").read_text().count("\n") == len(ARC)


def test_a_misspelt_name_ends_fetch_with_the_names_near_it(bare_pod: pods.Pod) -> None:
    assert "arc_easi is no task of lm-eval's" in refusal(bare_pod.paths, name="arc_easi")
    assert "arc_easy" in refusal(bare_pod.paths, name="arc_easi")
    write_rows(bare_pod.paths.claim("task-0") / "rows/test.jsonl", ROWS)
    said = refusal(bare_pod.paths, name="colour_quiz", source={"uri": "pvc://claim/rows"})
    assert "pvc://claim/rows has no colour_quiz.yaml" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("humaneval", "runs code that the model wrote"),
        ("squadv2", "is a program that fetches its own rows"),
        ("leaderboard", "is a group over several repositories"),
    ],
)
def test_what_cannot_be_asked_here_is_refused_by_name(bare_pod: pods.Pod, name: str, words: str) -> None:
    assert words in refusal(bare_pod.paths, name=name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("process_docs: !function utils.evil", "It may hold no code (!function)"),
        ("include: /etc/passwd", "has include, which is not taken"),
        ("metric_list: [{metric: /tmp/evil.py, hf_evaluate: true}]", "needs a metric_list"),
        ("metric_list: [{metric: /tmp/evil.py}]", "names the metric /tmp/evil.py"),
    ],
)
def test_a_task_may_bring_no_code(bare_pod: pods.Pod, line: str, words: str) -> None:
    text = f"task: mine\noutput_type: generate_until\ntest_split: test\n{line}\n"
    own_task(bare_pod.paths.claim("task-0") / "evals", "mine", text.replace("{", "{{").replace("}", "}}"))
    bring(bare_pod.paths, name="mine", source={"uri": "pvc://claim/evals"})
    with pytest.raises(StageError, match=r"evaluation\.tasks mine") as caught:
        load(EvaluationTask(name="mine"), bare_pod.paths)
    assert words in caught.value.message


def test_a_template_has_no_way_to_pythons_inside(bare_pod: pods.Pod) -> None:
    text = COLOURS.replace("{{{{question}}}}", "{{{{ question.__class__.__mro__ }}}}")
    own_task(bare_pod.paths.claim("task-0") / "evals", text=text)
    bring(bare_pod.paths, name="colours", source={"uri": "pvc://claim/evals"})
    with pytest.raises(StageError, match="access to attribute '__class__' of 'str' object is unsafe"):
        load(EvaluationTask(name="colours"), bare_pod.paths)


def test_a_group_stands_for_its_tasks() -> None:
    found = known.find("mmlu")
    assert found is not None
    assert found.is_group
    assert found.repository == "cais/mmlu"
    assert len(known.leaves("mmlu", found.index)) == 57


def test_rows_that_lie_there_whole_are_not_fetched_again(bare_pod: pods.Pod) -> None:
    with folder_aside(bare_pod.paths.tasks) as aside:
        write_rows(aside / "test.jsonl", ARC)
        seal(aside, bare_pod.paths.task("arc_easy"))
    bring(bare_pod.paths, hub="http://127.0.0.1:9", name="arc_easy")


def test_names_are_near_by_spelling_and_by_part() -> None:
    assert names.near("gsm8l")[0] == "gsm8k"
    assert "hellaswag" in names.near("hellaswg")
    assert names.near("qqqqqqqqqq") == []
