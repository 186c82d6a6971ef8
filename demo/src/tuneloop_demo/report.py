"""What the demo prints at its end: tables from statuses and answers. Pure."""

import textwrap
from collections.abc import Mapping, Sequence
from statistics import median_low

from tuneloop_demo.phases import clock
from tuneloop_demo.talk import Answer
from tuneloop_demo.target import Obj

SCORES = (
    ("evalLoss", "loss (nats per token, lower is better)"),
    ("perplexity", "perplexity (lower is better)"),
    ("rougeL", "ROUGE-L (0 to 1, higher is better)"),
    ("exactMatch", "exact match (0 to 1, higher is better)"),
)
WIDTH = 110


def _change(base: float | None, tuned: float | None) -> str:
    return f"{(tuned - base) / base:+.0%}" if base and tuned is not None else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def scores(job: Obj) -> str:
    """Return base and tuned scores side by side, and what the gates said."""
    evaluation = job.get("status", {}).get("evaluation", {})
    base, tuned = evaluation.get("base", {}), evaluation.get("tuned", {})
    lines = [f"{'on held-out questions':<42}{'base':>9}{'tuned':>9}{'change':>9}"]
    for key, label in SCORES:
        if key in base or key in tuned:
            before, after = base.get(key), tuned.get(key)
            lines.append(f"{label:<42}{_number(before):>9}{_number(after):>9}{_change(before, after):>9}")
    gates = [("passed" if gate["passed"] else "MISSED", gate["message"]) for gate in evaluation.get("gates", [])]
    return "\n".join([*lines, *(f"gate {verdict}: {message}" for verdict, message in gates)])


def _wrapped(label: str, text: str) -> str:
    indent = " " * 13
    return textwrap.fill(" ".join(text.split()), WIDTH, initial_indent=f"  {label:<11}", subsequent_indent=indent)


def answers(question: str, reference: str, base: Answer, tuned: Answer) -> str:
    """Return one question with what the API documents say and what both models answered."""
    parts = (("", question), ("documents", reference), ("base", base.text), ("tuned", tuned.text))
    return "\n".join(_wrapped(label, text) if label else text for label, text in parts)


def _milliseconds(values: Sequence[float]) -> str:
    return f"{median_low(values) * 1000:.0f} ms" if values else "-"


def latency(given: Mapping[str, Sequence[Answer]], deployment: Obj) -> str:
    """Return TTFT and TPOT by model, as this client felt them and as ``status.latency`` says the gateways measured."""
    measured = (deployment.get("status", {}).get("latency") or {}).get("models", [])
    rows: list[tuple[str, ...]] = [("", "", "TTFT p50", "TPOT p50", "requests")]
    for name, mine in given.items():
        ttft = _milliseconds([answer.ttft for answer in mine])
        tpot = _milliseconds([answer.tpot for answer in mine if answer.tpot is not None])
        rows.append((name, "this client", ttft, tpot, str(len(mine))))
        theirs: Obj = next((each for each in measured if each["name"] == name), {})
        shown = [str(theirs.get(key) or "-") for key in ("ttftP50", "tpotP50", "requests")]
        rows.append(("", "status.latency", *shown))
    return "\n".join(f"{row[0]:<18}{row[1]:<16}{row[2]:>12}{row[3]:>12}{row[4]:>10}" for row in rows)


def phases(done: Sequence[tuple[str, float]]) -> str:
    """Return the time of each phase, and of all."""
    lines = [f"{name:<56}{clock(seconds):>14}" for name, seconds in done]
    return "\n".join([*lines, f"{'in all':<56}{clock(sum(seconds for _, seconds in done)):>14}"])


def next_steps(kubectl: str, namespace: str, job: str, url: str, model: str) -> str:
    """Return the next three commands to try; the key stands as a variable."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "What does spec.replicas do?"}}]}}'
    return "\n".join(
        [
            f"  {kubectl} -n {namespace} get ftj,mdep",
            f"  {kubectl} -n {namespace} describe finetunejobs.tuneloop.dev {job}",
            f'  curl {url}/{namespace}/v1/chat/completions -H "Authorization: Bearer $KEY" '
            f"-H 'Content-Type: application/json' -d '{body}'",
        ]
    )
