"""``report.html`` of an artifact: one page that opens anywhere, with nothing to load and no script.

Pure: JSON in, HTML out. All text that is not ours (samples, names, messages) is escaped, and the page forbids itself
every resource, so that a hostile row of a dataset stays text. Says only what was measured.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from tuneloop_core.api.formats import format_duration

from tuneloop_trainer.charts import bar_chart, line_chart, number

Document = Mapping[str, Any]

MOST_SAMPLES = 32
MOST_CHARACTERS = 4000  # of one cell
SCORES = {
    "evalLoss": "Loss (lower is better)",
    "perplexity": "Perplexity (lower is better)",
    "exactMatch": "Exact match",
    "rougeL": "ROUGE-L",
    "accuracy": "Accuracy",
    "f1": "F1",
    "rewardAccuracy": "Reward accuracy",
    "rewardMargin": "Reward margin",
}
COUNTS = ("samples", "generations")
DATASET_NUMBERS = {
    "format": "Format",
    "rows": "Rows",
    "trainRows": "Rows to train on",
    "validationRows": "Rows held out",
    "trainTokens": "Tokens to train on",
    "trainedTokens": "Of them with loss: the answers",
    "p50Tokens": "Median row, tokens",
    "p95Tokens": "95th percentile, tokens",
    "maxTokens": "Longest row, tokens",
    "truncatedRows": "Rows cut",
}
PLANNED = (  # what, key of the plan, key of what was measured, unit
    ("Steps", "steps", "steps", ""),
    ("Tokens", "tokens", "tokens", ""),
    ("Peak memory", "memoryBytes", "peakMemoryBytes", "bytes"),
    ("Trained parameters", "trainableParameters", "trainableParameters", ""),
    ("All parameters", "totalParameters", "totalParameters", ""),
    ("Time of the train stage", "estimatedDuration", "trainSeconds", "s"),
    ("Of it for evaluation.tasks", "tasksDuration", "", ""),
    ("Price", "price", "price", "currency"),
)
STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5b6675;--edge:#d8dee6;--paper:#fff;--mark:#0b63ce;--good:#13733a;
--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b6;--edge:#39424f;--paper:#14181f;--mark:#6cb0ff;
--good:#6fd394;--bad:#ff8a80}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2rem}p.note,figcaption,caption{color:var(--soft)}
table{border-collapse:collapse;width:100%}th,td{border-bottom:1px solid var(--edge);padding:.35rem .6rem;
text-align:left;vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.text{white-space:pre-wrap;overflow-wrap:anywhere;width:25%}
.good{color:var(--good)}.bad{color:var(--bad)}code{overflow-wrap:anywhere}figure{margin:1rem 0}
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--edge)}svg .line{fill:none;stroke:var(--mark);stroke-width:2}svg .bar{fill:var(--mark)}
""".replace("\n", "")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report_html(document: Document) -> str:
    """The page of one artifact.

    ``document`` holds ``manifest`` (as in manifest.json) and, where there are any, ``samples`` (question, reference,
    base, tuned), ``histograms`` ({side: [(upper bound, rows)]}), ``plan`` and ``usage`` (as in the job's status).
    Raises ``KeyError`` for a document without a manifest.
    """
    manifest = document["manifest"]
    sections = [
        _head(manifest),
        _scores(manifest["evaluation"]),
        _curve(manifest["evaluation"].get("curve") or []),
        _dataset(manifest["dataset"], document.get("histograms") or {}),
        _plan(document.get("plan") or {}, {**manifest["training"], **(document.get("usage") or {})}),
        _samples(document.get("samples") or [], manifest["spec"]),
        _origin(manifest),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_t(manifest['name'])}: report</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _head(manifest: Document) -> str:
    kind = "A whole model" if manifest["kind"] == "Model" else "An adapter"
    return (
        f'<h1>{_t(manifest["name"])}</h1>\n<p class="note">{kind} for {_code(manifest["model"]["resolved"])}, '
        f"trained by Tuneloop (FineTuneJob {_t(manifest['namespace'])}/{_t(manifest['name'])}).</p>"
    )


def _scores(evaluation: Document) -> str:
    base, tuned = (each | (each.get("tasks") or {}) for each in (evaluation["base"], evaluation["tuned"]))
    names = [name for name in {**SCORES, **base, **tuned} if _is_score(name, base, tuned)]
    rows = [
        [
            _t(SCORES.get(name) or (name if "/" in name else _words(name))),
            _value(base.get(name)),
            _value(tuned.get(name)),
        ]
        for name in names
    ]
    counted = f"{number(tuned.get('samples') or 0)} held-out rows, {number(tuned.get('generations') or 0)} answers"
    table = _table(["", "Base", "Tuned"], rows, numbers=(1, 2), caption=f"Measured on {counted}.")
    return f"<h2>Base and tuned</h2>\n{table}{_gates(evaluation.get('gates') or [])}"


def _is_score(name: str, base: Document, tuned: Document) -> bool:
    values = (base.get(name), tuned.get(name))
    return name not in COUNTS and any(isinstance(value, int | float) for value in values)


def _gates(gates: Sequence[Document]) -> str:
    if not gates:
        return '\n<p class="note">No gates were set.</p>'
    items = [f"<li>{_passed(bool(gate['passed']))} {_t(gate['message'])}</li>" for gate in gates]
    return f"\n<h3>Gates</h3>\n<ul>{''.join(items)}</ul>"


def _passed(passed: bool) -> str:
    return f'<strong class="{"good" if passed else "bad"}">{"passed" if passed else "missed"}</strong>'


def _curve(curve: Sequence[Sequence[float]]) -> str:
    chart = line_chart([(float(step), float(loss)) for step, loss, *_ in curve], "Training loss by step", "step")
    words = "Loss of each step over its own rows, as it was trained on: nats per token, or per row."
    return f"<h2>Training loss</h2>\n<figure>{chart}<figcaption>{words}</figcaption></figure>" if chart else ""


def _dataset(dataset: Document, histograms: Mapping[str, Sequence[Sequence[float]]]) -> str:
    rows = [[words, _value(dataset[key])] for key, words in DATASET_NUMBERS.items() if key in dataset]
    charts = "".join(_histogram(side, histograms[side]) for side in histograms)
    return f"<h2>Dataset</h2>\n{_table(['', ''], rows, numbers=(1,))}{charts}"


def _histogram(side: str, buckets: Sequence[Sequence[float]]) -> str:
    bars = [(_length(int(bound)), float(rows)) for bound, rows, *_ in buckets]
    chart = bar_chart(bars, f"Row lengths, {side}", "tokens in a row, at most (1k is 1,024)")
    return f"\n<figure>{chart}<figcaption>Row lengths, {_t(side)}</figcaption></figure>" if chart else ""


def _length(tokens: int) -> str:
    """A bound of a histogram, which doubles: ``512``, ``4k``, ``1M``."""
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def _plan(plan: Document, measured: Document) -> str:
    rows = [
        [words, _measure(plan.get(key), unit, plan), _measure(measured.get(found), unit, plan) if found else ""]
        for words, key, found, unit in PLANNED
        if plan.get(key) or measured.get(found)
    ]
    rows += [[f"{_t(_words(part))}, of the memory", _measure(size, "bytes", plan), ""] for part, size in _parts(plan)]
    words = f'<p class="note">{_t(plan["message"])}</p>' if plan.get("message") else ""
    return f"<h2>Plan and measured</h2>\n{_table(['', 'Planned', 'Measured'], rows, numbers=(1, 2))}{words}"


def _parts(plan: Document) -> list[tuple[str, int]]:
    """Planned memory by part, bytes, the largest first."""
    parts = [(name, size) for name, size in (plan.get("memory") or {}).items() if isinstance(size, int) and size > 0]
    return sorted(parts, key=lambda part: -part[1])


def _samples(samples: Sequence[Document], spec: Document) -> str:
    keys = ("question", "reference", "base", "tuned")
    rows = [[_cell(sample.get(key, "")) for key in keys] for sample in samples[:MOST_SAMPLES]]
    if not rows:
        hidden = (spec.get("evaluation") or {}).get("publishSamples") is False
        return '<p class="note">Answers are not shown: evaluation.publishSamples is false.</p>' if hidden else ""
    table = _table(["Question", "Reference", "Base", "Tuned"], rows, texts=(0, 1, 2, 3))
    return f"<h2>Answers side by side</h2>\n{table}"


def _origin(manifest: Document) -> str:
    rows = [
        ["Base model", _code(manifest["model"]["resolved"])],
        [
            "Dataset",
            f"<code>{_t(manifest['dataset']['uri'])}</code> (<code>{_t(manifest['dataset']['digest'])}</code>)",
        ],
        *_held_out((manifest["spec"].get("dataset") or {}).get("validation") or {}),
        ["Trainer image", _code(manifest["images"].get("trainer", ""))],
        ["Tuneloop", _t(manifest["operatorVersion"])],
    ]
    note = f'<p class="note">Every setting is in {_code("manifest.json")}, scores in {_code("evaluation.json")}.</p>'
    return f"<h2>Where it came from</h2>\n{_table(['', ''], rows)}{note}"


def _held_out(validation: Document) -> Iterator[list[str]]:
    """Where held-out rows came from, if they were named."""
    uri, files = validation.get("uri"), validation.get("files") or ()
    if uri or files:
        yield ["Held-out rows", " ".join(_code(part) for part in (*([uri] if uri else []), *files))]


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    texts: Sequence[int] = (),
    caption: str = "",
) -> str:
    """A table of cells that are HTML already."""

    def cell(tag: str, column: int, content: str) -> str:
        kind = ' class="n"' if column in numbers else ' class="text"' if column in texts and tag == "td" else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    head = "".join(cell("th", column, _t(words)) for column, words in enumerate(heads))
    head = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    body = "".join(f"<tr>{''.join(cell('td', column, each) for column, each in enumerate(row))}</tr>\n" for row in rows)
    words = f"<caption>{_t(caption)}</caption>" if caption else ""
    return f"<table>{words}{head}<tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    text = str(value)
    return _t(text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…")


def _measure(value: Any, unit: str, plan: Document) -> str:
    if value in (None, "", 0):
        return "not known"
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB"
    if unit == "s" and isinstance(value, int | float):
        return format_duration(round(value))
    return f"{_value(value)} {_t(plan.get('currency', ''))}".rstrip() if unit == "currency" else _value(value)


def _value(value: Any) -> str:
    if value is None:
        return "not measured"
    return number(value) if isinstance(value, int | float) else _t(str(value))


def _words(name: str) -> str:
    """``rewardMargin`` as "Reward margin"."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f" {found[1].lower()}", name).capitalize()


def _code(text: Any) -> str:
    return f"<code>{_t(text)}</code>"


def _t(text: Any) -> str:
    return escape(str(text), quote=True)
