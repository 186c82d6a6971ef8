"""Which formats an objective learns from. Never decides what a job's objective is."""

from tuneloop_core.data.rows import EXPECTED, Format

_SUPERVISED = (Format.CHAT, Format.INSTRUCTION, Format.COMPLETION, Format.TEXT)

LEARNS_FROM: dict[str, tuple[Format, ...]] = {
    "SFT": _SUPERVISED,
    "DPO": (Format.PREFERENCE,),
    "KTO": (Format.UNPAIRED_PREFERENCE,),
    "Classification": (Format.CLASSIFICATION,),
}
"""By ``Method.learns``: the objective, or Classification."""


def mismatch(objective: str, format_: Format) -> str:
    """Words for rows that the objective cannot learn from; empty where it can."""
    wanted = LEARNS_FROM[objective]
    if format_ in wanted:
        return ""
    shapes = " or ".join(EXPECTED[each] for each in wanted)
    others = " or ".join(_name(name) for name, formats in LEARNS_FROM.items() if format_ in formats)
    return (
        f"the rows are {format_} ({EXPECTED[format_]}), and {_name(objective)} does not learn from them: give it rows "
        f"such as {shapes}, or take {others}"
    )


def _name(objective: str) -> str:
    """As ``spec.method`` says it."""
    return "task SequenceClassification" if objective == "Classification" else f"objective {objective}"
