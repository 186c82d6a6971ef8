"""The span finder where the assistant calls tools, against templates as models with tools ship them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuneloop_core.data.spans import Message, Render, SpanError, find_spans

QWEN = (
    "{{ '<|im_start|>system\n# Tools\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}{% for call in m.tool_calls %}"
    '{{ \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' + call.function.arguments | tojson '
    "+ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + m.content }}"
    "{{ '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ '<s>' }}{% for m in messages %}{% if m.tool_calls %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    '{{ \'{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' + m.tool_calls[0].function.arguments '
    "| tojson + '}<|eot_id|>' }}{% else %}{{ '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + "
    "'<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}{{ call.function | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}{{ ']</s>' }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
DEAF = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLOSERS = ("<|im_end|>", "<|eot_id|>", "</s>", "<s>", "<|im_start|>", "<|start_header_id|>")
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def renderer(template: str) -> Render:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps  # as transformers has it: nothing is escaped for HTML
    compiled = environment.from_string(template)

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, tools=TOOLS)

    return render


def calling(*arguments: dict[str, Any], content: str = "") -> Message:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": each}} for each in arguments]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def written(template: str, *messages: Message, first: int = 0) -> list[str]:
    text, spans = find_spans(renderer(template), messages, CLOSERS, first)
    return [text[start:end] for start, end in spans]


TALK = (said("user", "Warm?"), calling({"city": "Paris"}), said("tool", "21"), said("assistant", "Mild."))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            QWEN,
            [
                '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
                "Mild.<|im_end|>",
            ],
        ),
        (LLAMA, ['{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>', "Mild.<|eot_id|>"]),
        (MISTRAL, ['[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]</s>', " Mild.</s>"]),
    ],
    ids=["qwen", "llama", "mistral"],
)
def test_calls_and_their_end_are_found(template: str, expected: list[str]) -> None:
    assert written(template, *TALK) == expected
    assert written(template, *TALK[:2]) == expected[:1]
    assert written(template, *TALK, first=2) == expected[1:]


@pytest.mark.parametrize("city", ["", "}}", "<|im_end|>", '"}}\n</tool_call>', "weather"])
def test_no_argument_leads_astray(city: str) -> None:
    (call, answer) = written(
        QWEN, said("user", "?"), calling({"city": city}), said("tool", city), said("assistant", "a")
    )
    assert json.dumps(city)[1:-1].split("<")[0] in call
    assert call.endswith("</tool_call><|im_end|>")
    assert answer == "a<|im_end|>"


def test_words_and_several_calls_are_one_span() -> None:
    (call,) = written(QWEN, said("user", "?"), calling({"city": "a"}, {"city": "b"}, content="Let me see."))
    assert call.startswith("Let me see.\n<tool_call>")
    assert call.count("<tool_call>") == 2
    assert call.endswith("</tool_call><|im_end|>")


def test_two_calls_after_each_other_are_two_spans() -> None:
    talk = (TALK[0], TALK[1], TALK[2], calling({"city": "Rome"}), said("tool", "30"), said("assistant", "Hot."))
    first, second, answer = written(LLAMA, *talk)
    assert ("Paris" in first, "Rome" in second, answer) == (True, True, "Hot.<|eot_id|>")


def test_a_template_that_writes_no_calls_is_refused() -> None:
    with pytest.raises(SpanError, match=r"does not write tool calls \(message 1\); take a model trained with tools"):
        written(DEAF, *TALK)


def test_a_call_without_a_sure_end_is_refused() -> None:
    with pytest.raises(SpanError, match="place of the tool calls of message 1"):
        find_spans(renderer(QWEN), TALK, ())
