"""Rows to tokens with the model's own tokenizer and chat template, and which of the tokens are trained.

The one place where text becomes training data: check counts with it, train and evaluation read what it wrote. Uses
the template's own ``{% generation %}`` markers where it has them, else the span finder. Never imports torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tuneloop_core.data.messages import Tool
from tuneloop_core.data.pairs import Turns
from tuneloop_core.data.rows import ChatRow, ClassRow, CompletionRow, PreferenceRow, Row, TextRow, UnpairedRow
from tuneloop_core.data.spans import Message, SpanError, find_spans
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

MARKER = re.compile(r"{%-?\s*generation\s*-?%}")
TOOLS = re.compile(r"\btools\b")


class EncodeError(ValueError):
    """A row that the model's template or tokenizer does not take; the message says why."""


@dataclass(frozen=True)
class Encoded:
    """Token ids and, for each, 1 where it carries loss."""

    ids: list[int]
    trained: list[int]

    def cut(self, limit: int) -> "Encoded":
        """At most ``limit`` tokens, the first ones."""
        return Encoded(self.ids[:limit], self.trained[:limit])


@dataclass(frozen=True)
class Question:
    """What the model is asked in evaluation, and the answer that the data holds."""

    ids: list[int]
    text: str
    reference: str


class Encoder:
    """A tokenizer with its template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self._marked = self.has_template and bool(MARKER.search(str(tokenizer.chat_template)))
        self._takes_tools = bool(TOOLS.search(str(tokenizer.chat_template)))
        self._closers = sorted({token for token in tokenizer.all_special_tokens if token}, key=len, reverse=True)

    def method(self, row: Row) -> str:
        """How the trained part is found: Markers, SpanFinder, or Plain where no template is used."""
        if isinstance(row, ChatRow):
            return "Markers" if self._marked else "SpanFinder"
        talks = isinstance(row, PreferenceRow | UnpairedRow) and not isinstance(row.prompt, str)
        return "SpanFinder" if talks else "Plain"

    def documents(self, row: Row) -> list[Encoded]:
        """The documents of a row: for a preference the prompt with either answer, for all others one."""
        if isinstance(row, PreferenceRow):
            return [self._pair(row.prompt, answer, row.tools) for answer in (row.chosen, row.rejected)]
        return [self.encode(row)]

    def encode(self, row: Row) -> Encoded:
        """Tokens of a whole row, of a preference with its chosen answer; raises ``EncodeError``."""
        if isinstance(row, ChatRow):
            encoded = self._by_markers(row) if self._marked else self._by_spans(row.as_messages(), row.tools)
        elif isinstance(row, PreferenceRow | UnpairedRow):
            encoded = self._pair(row.prompt, _answer(row), row.tools)
        elif isinstance(row, CompletionRow):
            encoded = self._pair(row.prompt, row.completion, [])
        elif isinstance(row, TextRow):
            encoded = self._with_end(self._tokenize(row.text, [(0, None)], True))
        else:
            return self._tokenize(row.text, [], True)
        if not any(encoded.trained):
            raise EncodeError("no token of it would be trained")
        return encoded

    def question(self, row: Row) -> Question | None:
        """The prompt before the last answer; None for what asks nothing, and for an answer that was not liked."""
        if isinstance(row, TextRow | ClassRow) or (isinstance(row, UnpairedRow) and not row.label):
            return None
        if isinstance(row, ChatRow):
            messages = row.as_messages()
            last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
            return self._asked(messages[:last], messages[last:], row.tools)
        answer, tools = (row.completion, []) if isinstance(row, CompletionRow) else (_answer(row), row.tools)
        if isinstance(row.prompt, str):
            return Question(self._tokenize(row.prompt, [], True).ids, row.prompt, str(answer).strip())
        return self._asked(row.prompt, list(answer), tools)  # type: ignore[arg-type]

    def example(self, row: Row) -> str:
        """The row as the model sees it."""
        if isinstance(row, ChatRow):
            return self._render(row.as_messages(), add_generation_prompt=False, tools=row.tools)
        if isinstance(row, TextRow | ClassRow):
            return row.text
        if isinstance(row, CompletionRow):
            return row.prompt + row.completion
        whole = _joined(row.prompt, _answer(row))
        return whole if isinstance(whole, str) else self._render(whole, add_generation_prompt=False, tools=row.tools)

    def _asked(self, messages: list[Message], answers: list[Message], tools: list[Tool]) -> Question:
        text = self._render(messages, add_generation_prompt=True, tools=tools)
        asked = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
        reference = self._called([*messages, answers[0]], tools) or answers[0]["content"].strip()
        return Question(self._tokenize(text, [], False).ids, asked, reference)

    def _called(self, messages: list[Message], tools: list[Tool]) -> str:
        """The calls of the last message as the template writes them; empty where it makes none."""
        if not messages[-1].get("tool_calls"):
            return ""
        text, spans = self._spans(messages, tools, len(messages) - 1)
        written = text[slice(*spans[-1])]
        ending = next((closer for closer in self._closers if written.endswith(closer)), "")
        return written.removesuffix(ending).strip()

    def _pair(self, prompt: Turns, answer: Turns, tools: list[Tool]) -> Encoded:
        """A prompt and its answer, of which only the answer is trained."""
        whole = _joined(prompt, answer)
        if not isinstance(whole, str):
            return self._by_spans(whole, tools, len(prompt))
        return self._with_end(self._tokenize(whole, [(len(prompt), None)], True))

    def _spans(self, messages: list[Message], tools: list[Tool], first: int) -> tuple[str, list[tuple[int, int]]]:
        try:
            return find_spans(partial(self._render, tools=tools), messages, self._closers, first)
        except SpanError as error:
            raise EncodeError(f"the trained part cannot be found: {error}") from error

    def _by_spans(self, messages: list[Message], tools: list[Tool], first: int = 0) -> Encoded:
        text, spans = self._spans(messages, tools, first)
        encoded = self._tokenize(text, spans, False)
        ends_open = text[spans[-1][0] : spans[-1][1]].endswith(tuple(self._closers))
        return encoded if ends_open or text[spans[-1][1] :].strip() else self._with_end(encoded)

    def _by_markers(self, row: ChatRow) -> Encoded:
        self._require_tools(row.tools)
        try:
            out = self.tokenizer.apply_chat_template(
                row.as_messages(),
                tools=row.tools or None,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
        except Exception as error:
            raise EncodeError(f"the model's chat template refuses it: {error}") from error
        return Encoded(list(out["input_ids"]), [int(value) for value in out["assistant_masks"]])

    def _require_tools(self, tools: list[Tool]) -> None:
        if tools and not self._takes_tools:
            raise EncodeError(
                "it has tools, but the model's chat template writes none; take a model trained with tools"
            )

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, tools: list[Tool]) -> str:
        if not self.has_template:
            raise EncodeError("it is a conversation, but the model has no chat template: take an instruct model")
        self._require_tools(tools)
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=tools or None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:
            raise EncodeError(f"the model's chat template refuses it: {error}") from error
        return str(text)

    def _tokenize(self, text: str, spans: Sequence[tuple[int, int | None]], special: bool) -> Encoded:
        """Tokens of a text; those that begin within a span are trained."""
        out = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        return Encoded(list(out["input_ids"]), _marks(out["offset_mapping"], spans))

    def _with_end(self, encoded: Encoded) -> Encoded:
        """Close with the end-of-text token, trained, so that the model learns to stop."""
        end = self.tokenizer.eos_token_id
        if end is None or (encoded.ids and encoded.ids[-1] == end):
            return encoded
        return Encoded([*encoded.ids, end], [*encoded.trained, 1])


def load_encoder(model: Path) -> Encoder:
    """The tokenizer in a model folder; its own code is never run."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - slow to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise StageError(Reason.MODEL_UNSUPPORTED, f"the model's tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        message = "the model has no fast tokenizer (tokenizer.json), which is needed to find the trained part."
        raise StageError(Reason.MODEL_UNSUPPORTED, message)
    return Encoder(tokenizer)


def _marks(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int | None]]) -> list[int]:
    """1 for each token that begins within a span; a token of no characters is in none."""
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    inside = np.zeros(len(starts), dtype=np.int64)
    for first, last in spans:
        inside[(starts >= first) & (starts < (ends if last is None else np.minimum(ends, last)))] = 1
    marks: list[int] = inside.tolist()
    return marks


def _answer(row: PreferenceRow | UnpairedRow) -> Turns:
    return row.chosen if isinstance(row, PreferenceRow) else row.completion


def _joined(prompt: Turns, answer: Turns) -> Turns:
    """Both are strings, or both are messages (``tuneloop_core.data.pairs``)."""
    return prompt + answer  # type: ignore[operator]
