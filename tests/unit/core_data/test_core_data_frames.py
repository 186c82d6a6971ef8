"""Frames: one rendering a row where the shape is known, the same spans as by the long way, and no guess otherwise."""

from collections.abc import Sequence
from typing import Any

import pytest

from tuneloop_core.data.frames import Frames
from tuneloop_core.data.spans import Message, find_spans

CLOSERS = ("<|end|>",)


class Template:
    """A chat template in Python that counts its renderings."""

    def __init__(self, thinks: bool = False, trims: bool = False) -> None:
        self.renderings, self._thinks, self._trims = 0, thinks, trims

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        self.renderings += 1
        text = "".join(f"<|{each['role']}|>\n{self._content(each)}<|end|>\n" for each in messages)
        return f"[system]{text}" + ("<|assistant|>\n" if add_generation_prompt else "")

    def _content(self, message: Message) -> str:
        content = message["content"].strip() if self._trims else message["content"]
        if self._thinks and message["role"] == "assistant":
            return "<think>\n\n</think>\n" + content.split("</think>")[-1]
        return str(content)


def chat(*contents: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]


@pytest.mark.parametrize("template", [Template(), Template(thinks=True), Template(trims=True)])
def test_a_known_shape_is_rendered_once_and_marked_as_by_the_long_way(template: Template) -> None:
    frames = Frames()
    frames.find(template, chat("one", "two", "three", "four"), CLOSERS)
    for row in (chat("a", "b", "b", "b"), chat("<|end|>", "<|end|>\n", "[system]", " x "), chat("", "b", "", "d")):
        before = template.renderings
        found = frames.find(template, row, CLOSERS)
        assert template.renderings == before + 1
        assert found == find_spans(template, row, CLOSERS)


def test_what_is_learned_from_a_later_place_on_is_another_shape() -> None:
    frames, template = Frames(), Template()
    frames.find(template, chat("a", "b", "c", "d"), CLOSERS)
    text, spans = frames.find(template, chat("e", "f", "g", "h"), CLOSERS, first=2)
    assert [text[slice(*span)] for span in spans] == ["h<|end|>"]


def test_a_text_that_the_template_rewrites_goes_the_long_way() -> None:
    frames, template = Frames(), Template(thinks=True)
    frames.find(template, chat("a", "b"), CLOSERS)
    thoughtful = chat("a", "I wonder</think>b")
    with pytest.raises(ValueError, match="rewrites the text"):
        frames.find(template, thoughtful, CLOSERS)
    assert frames.find(template, chat("a", "c"), CLOSERS) == find_spans(template, chat("a", "c"), CLOSERS)


def test_tool_calls_go_the_long_way() -> None:
    frames, template = Frames(), Template()
    row = chat("a", "b")
    row[0]["name"] = "Ann"
    for _ in range(2):
        before = template.renderings
        frames.find(template, row, CLOSERS)
        assert template.renderings > before + 1
