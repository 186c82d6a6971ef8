"""The model card: README.md of an artifact, in the form that hubs read (YAML front matter, then Markdown).

Pure: the manifest in, text out. Says only what was measured.
"""

from typing import Any

_SCORES = (
    ("evalLoss", "Loss (nats per trained token)"),
    ("perplexity", "Perplexity"),
    ("exactMatch", "Exact match"),
    ("rougeL", "ROUGE-L"),
)


def model_card(manifest: dict[str, Any]) -> str:
    """The card of one artifact from its manifest (camelCase, as in manifest.json)."""
    model, dataset, training = manifest["model"], manifest["dataset"], manifest["training"]
    base_name = model["uri"].removeprefix("hf://")
    return "\n".join(
        [
            "---",
            f"base_model: {base_name}",
            "library_name: peft",
            "pipeline_tag: text-generation",
            "tags: [lora, tuneloop]",
            "---",
            "",
            f"# {manifest['name']}",
            "",
            f"A LoRA adapter for `{model['resolved']}`, trained by Tuneloop (FineTuneJob {manifest['namespace']}/"
            f"{manifest['name']}) on `{dataset['uri']}` (`{dataset['digest']}`).",
            "",
            "## Evaluation on held-out rows",
            "",
            *_score_table(manifest["evaluation"]),
            "",
            *_gate_lines(manifest["evaluation"]["gates"]),
            "## Training",
            "",
            f"- {training['steps']} steps over {training['tokens']} tokens in {training['seconds']:.0f} s "
            f"({training['tokensPerSecond']:.0f} tokens/s), {training['resumes']} resumes",
            f"- {training['trainableParameters']} of {training['totalParameters']} parameters trained; rank "
            f"{manifest['spec']['method']['lora']['rank']}, alpha {manifest['spec']['method']['lora']['alpha']}, "
            f"learning rate {manifest['spec']['training']['learningRate']}, "
            f"seed {manifest['spec']['training']['seed']}",
            f"- {dataset['trainRows']} rows trained on, {dataset['validationRows']} held out",
            "",
            "Every setting, image and digest is in `manifest.json`.",
            "",
        ]
    )


def _score_table(evaluation: dict[str, Any]) -> list[str]:
    rows = [
        f"| {words} | {_number(evaluation['base'].get(key))} | {_number(evaluation['tuned'].get(key))} |"
        for key, words in _SCORES
    ]
    return ["| | base | tuned |", "|---|---|---|", *rows]


def _gate_lines(gates: list[dict[str, Any]]) -> list[str]:
    if not gates:
        return []
    lines = [f"- {'passed' if gate['passed'] else 'missed'}: {gate['message']}" for gate in gates]
    return ["## Gates", "", *lines, ""]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
