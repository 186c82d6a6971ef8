"""The model card: README.md of an artifact, in the form that hubs read (YAML front matter, then Markdown).

Pure: the manifest in, text out. Says only what was measured.
"""

from typing import Any

_SCORES = (
    ("evalLoss", "Loss (nats per trained token)"),
    ("perplexity", "Perplexity"),
    ("exactMatch", "Exact match"),
    ("rougeL", "ROUGE-L"),
    ("rewardAccuracy", "Reward accuracy"),
    ("rewardMargin", "Reward margin"),
    ("accuracy", "Accuracy"),
    ("f1", "F1"),
)


def model_card(manifest: dict[str, Any]) -> str:
    """The card of one artifact from its manifest (camelCase, as in manifest.json)."""
    model, dataset, training = manifest["model"], manifest["dataset"], manifest["training"]
    return "\n".join(
        [
            "---",
            *_base_model(model["uri"]),
            f"library_name: {'transformers' if manifest['kind'] == 'Model' else 'peft'}",
            f"pipeline_tag: {'text-classification' if _learns(manifest) == 'classes' else 'text-generation'}",
            f"tags: [{_tag(manifest)}, tuneloop]",
            "---",
            "",
            f"# {manifest['name']}",
            "",
            f"{_what(manifest)} `{model['resolved']}`, trained by Tuneloop (FineTuneJob {manifest['namespace']}/"
            f"{manifest['name']}) on `{dataset['uri']}` (`{dataset['digest']}`).",
            "",
            "## Evaluation on held-out rows",
            "",
            *_score_table(manifest["evaluation"], _learns(manifest)),
            "",
            *_gate_lines(manifest["evaluation"]["gates"]),
            "## Training",
            "",
            f"- {training['steps']} steps over {training['tokens']} tokens in {training['seconds']:.0f} s "
            f"({training['tokensPerSecond']:.0f} tokens/s), {training['resumes']} resumes",
            f"- {training['trainableParameters']} of {training['totalParameters']} parameters trained; "
            f"{_objective(manifest['spec']['method'])}{_adapter(manifest['spec']['method'])}"
            f"learning rate {manifest['spec']['training']['learningRate']}, "
            f"seed {manifest['spec']['training']['seed']}",
            f"- {dataset['trainRows']} rows trained on, {dataset['validationRows']} held out",
            "",
            "Every setting, image and digest is in `manifest.json`.",
            "",
        ]
    )


def _learns(manifest: dict[str, Any]) -> str:
    method = manifest["spec"]["method"]
    return "classes" if method["task"] == "SequenceClassification" else str(method["objective"])


def _tag(manifest: dict[str, Any]) -> str:
    adapter: str = manifest["spec"]["method"]["adapter"]
    return "full-fine-tune" if adapter == "None" else adapter.lower()


def _what(manifest: dict[str, Any]) -> str:
    adapter = manifest["spec"]["method"]["adapter"]
    if adapter == "None":
        return "A full fine-tune of"
    return f"A {adapter} fine-tune, merged into" if manifest["kind"] == "Model" else f"A {adapter} adapter for"


def _objective(method: dict[str, Any]) -> str:
    """The objective where it is not plain answers."""
    return "" if method["objective"] == "SFT" else f"objective {method['objective']}, beta {method['beta']}, "


def _adapter(method: dict[str, Any]) -> str:
    """Settings of the adapter; nothing where there was none."""
    if method["adapter"] == "None":
        return ""
    lora = method["lora"]
    stabilized = " (rank-stabilized)" if lora["rankStabilized"] else ""
    return f"rank {lora['rank']}{stabilized}, alpha {lora['alpha']}, "


def _base_model(uri: str) -> list[str]:
    """A hub refuses a card whose base is no repository of a hub."""
    return [f"base_model: {uri.removeprefix('hf://')}"] if uri.startswith("hf://") else []


def _score_table(evaluation: dict[str, Any], learns: str) -> list[str]:
    base, tuned = evaluation["base"], evaluation["tuned"]
    rows = [
        f"| {_words(key, words, learns)} | {_number(base.get(key))} | {_number(tuned.get(key))} |"
        for key, words in _SCORES
        if key == "evalLoss" or tuned.get(key) is not None
    ]
    return [
        "| | base | tuned |",
        "|---|---|---|",
        *rows,
        *_task_rows(base.get("tasks") or {}, tuned.get("tasks") or {}),
    ]


def _task_rows(base: dict[str, float], tuned: dict[str, float]) -> list[str]:
    """Scores of evaluation.tasks."""
    return [f"| {name} (lm-eval) | {_number(base.get(name))} | {_number(tuned[name])} |" for name in tuned]


def _words(key: str, words: str, learns: str) -> str:
    return words if learns == "SFT" or key != "evalLoss" else f"Loss ({learns}, per row)"


def _gate_lines(gates: list[dict[str, Any]]) -> list[str]:
    if not gates:
        return []
    lines = [f"- {'passed' if gate['passed'] else 'missed'}: {gate['message']}" for gate in gates]
    return ["## Gates", "", *lines, ""]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
