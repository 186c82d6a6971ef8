"""The span finder against templates as real models ship them."""

from collections.abc import Sequence

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuneloop_core.data.spans import Message, Render, SpanError, find_spans

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN3 = (  # the last answer gets an empty thinking block, earlier ones do not
    "{% for message in messages %}{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLOSERS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<s>", "<|im_start|>", "<|start_header_id|>")


def renderer(template: str) -> Render:
    def raise_exception(message: str) -> str:
        raise ValueError(message)

    compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return compiled.render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token="<s>",
            eos_token="</s>",
            raise_exception=raise_exception,
        )

    return render


def trained(template: str, *turns: tuple[str, str]) -> list[str]:
    messages = [{"role": role, "content": content} for role, content in turns]
    text, spans = find_spans(renderer(template), messages, CLOSERS)
    return [text[start:end] for start, end in spans]


TWO_TURNS = (("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four."))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (SMOLLM2, ["Two.<|im_end|>", "Four.<|im_end|>"]),
        (LLAMA3, ["Two.<|eot_id|>", "Four.<|eot_id|>"]),
        (MISTRAL, [" Two.</s>", " Four.</s>"]),
        (GEMMA, ["Two.<end_of_turn>", "Four.<end_of_turn>"]),
        (QWEN3, ["Two.<|im_end|>", "<think>\n\n</think>\n\nFour.<|im_end|>"]),
    ],
    ids=["smollm2", "llama3", "mistral", "gemma", "qwen3"],
)
def test_answers_and_their_end_are_found(template: str, expected: list[str]) -> None:
    assert trained(template, *TWO_TURNS) == expected


def test_a_default_system_prompt_is_not_trained() -> None:
    assert trained(SMOLLM2, ("user", "Hi"), ("assistant", "Hello")) == ["Hello<|im_end|>"]


def test_an_answer_that_repeats_the_question_is_found_in_its_own_turn() -> None:
    messages = [{"role": "user", "content": "Say no."}, {"role": "assistant", "content": "Say no."}]
    text, spans = find_spans(renderer(SMOLLM2), messages, CLOSERS)
    assert spans[0][0] == text.rindex("Say no.")


def test_stripped_answers_are_found() -> None:
    assert trained(LLAMA3, ("user", "q"), ("assistant", "  padded \n")) == ["padded<|eot_id|>"]


def test_a_conversation_may_begin_with_the_assistant() -> None:
    assert trained(LLAMA3, ("assistant", "Welcome"), ("user", "q"), ("assistant", "a")) == [
        "Welcome<|eot_id|>",
        "a<|eot_id|>",
    ]


def test_a_template_that_rewrites_answers_is_refused() -> None:
    with pytest.raises(SpanError, match="message 1"):
        trained("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", ("user", "q"), ("assistant", "answer"))


def test_a_template_that_drops_answers_is_refused() -> None:
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(SpanError, match="once and unchanged"):
        trained(template, ("user", "q"), ("assistant", "answer"))


def test_what_the_template_raises_is_passed_on() -> None:
    with pytest.raises(ValueError, match="alternate"):
        trained(MISTRAL, ("user", "q"), ("user", "again"), ("assistant", "a"))
