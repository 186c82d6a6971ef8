"""Rows to tokens with the model's own tokenizer and chat template, and which of the tokens are trained.

The one place where text becomes training data: check counts with it, train and evaluation read what it wrote. Uses
the template's own ``{% generation %}`` markers where it has them, else the span finder. A row is first rendered to
drafts (text and spans), and drafts of many rows are tokenized together. Never imports torch.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tuneloop_core.data.frames import Frames
from tuneloop_core.data.messages import Tool
from tuneloop_core.data.pairs import Turns
from tuneloop_core.data.rows import ChatRow, ClassRow, CompletionRow, PreferenceRow, Row, TextRow, UnpairedRow
from tuneloop_core.data.spans import Message, SpanError
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

MARKER = re.compile(r"{%-?\s*generation\s*-?%}")
TOOLS = re.compile(r"\btools\b")


class EncodeError(ValueError):
    """A row that the model's template or tokenizer does not take; the message says why."""


@dataclass(frozen=True)
class Draft:
    """A document before its tokens: the text, and the characters that are trained (end excluded; None is the end)."""

    text: str
    spans: Sequence[tuple[int, int | None]] = ()
    special: bool = False  # the tokenizer adds its own beginning and end
    closed: bool = False  # the end-of-text token is added, trained
    touching: bool = False  # a token that only reaches into a span counts too, as with markers


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
        self._frames = Frames()

    def method(self, row: Row) -> str:
        """How the trained part is found: Markers, SpanFinder, or Plain where no template is used."""
        if isinstance(row, ChatRow):
            return "Markers" if self._marked else "SpanFinder"
        talks = isinstance(row, PreferenceRow | UnpairedRow) and not isinstance(row.prompt, str)
        return "SpanFinder" if talks else "Plain"

    def documents(self, row: Row) -> list[Encoded]:
        """The documents of a row: for a preference the prompt with either answer, for all others one."""
        return self.tokenize(self.drafts(row))

    def encode(self, row: Row) -> Encoded:
        """Tokens of a whole row, of a preference with its chosen answer; raises ``EncodeError``."""
        encoded = self.documents(row)[0]
        require_trained(row, [encoded])
        return encoded

    def drafts(self, row: Row) -> list[Draft]:
        """A row's documents, rendered; raises ``EncodeError`` for what the template does not take."""
        if isinstance(row, PreferenceRow):
            return [self._pair(row.prompt, answer, row.tools) for answer in (row.chosen, row.rejected)]
        if isinstance(row, ChatRow):
            return [self._by_markers(row) if self._marked else self._by_spans(row.as_messages(), row.tools)]
        if isinstance(row, UnpairedRow):
            return [self._pair(row.prompt, row.completion, row.tools)]
        if isinstance(row, CompletionRow):
            return [self._pair(row.prompt, row.completion, [])]
        if isinstance(row, TextRow):
            return [Draft(row.text, [(0, None)], special=True, closed=True)]
        return [Draft(row.text, special=True)]

    def tokenize(self, drafts: Sequence[Draft]) -> list[Encoded]:
        """The tokens of many documents at once, in their order: the fast tokenizer shares them among its threads."""
        found: dict[int, Encoded] = {}
        for special in (False, True):
            places = [place for place, draft in enumerate(drafts) if draft.special is special]
            if not places:
                continue
            out = self._batch([drafts[place].text for place in places], special)
            for place, ids, offsets in zip(places, out["input_ids"], out["offset_mapping"], strict=True):
                found[place] = self._encoded(drafts[place], ids, offsets)
        return [found[place] for place in range(len(drafts))]

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
            return Question(self.tokenize([Draft(row.prompt, special=True)])[0].ids, row.prompt, str(answer).strip())
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
        return Question(self.tokenize([Draft(text)])[0].ids, asked, reference)

    def _called(self, messages: list[Message], tools: list[Tool]) -> str:
        """The calls of the last message as the template writes them; empty where it makes none."""
        if not messages[-1].get("tool_calls"):
            return ""
        text, spans = self._spans(messages, tools, len(messages) - 1)
        written = text[slice(*spans[-1])]
        ending = next((closer for closer in self._closers if written.endswith(closer)), "")
        return written.removesuffix(ending).strip()

    def _pair(self, prompt: Turns, answer: Turns, tools: list[Tool]) -> Draft:
        """A prompt and its answer, of which only the answer is trained."""
        whole = _joined(prompt, answer)
        if not isinstance(whole, str):
            return self._by_spans(whole, tools, len(prompt))
        return Draft(whole, [(len(prompt), None)], special=True, closed=True)

    def _spans(self, messages: list[Message], tools: list[Tool], first: int) -> tuple[str, list[tuple[int, int]]]:
        kind = json.dumps(tools, sort_keys=True) if tools else ""
        try:
            return self._frames.find(partial(self._render, tools=tools), messages, self._closers, first, kind)
        except SpanError as error:
            raise EncodeError(f"the trained part cannot be found: {error}") from error

    def _by_spans(self, messages: list[Message], tools: list[Tool], first: int = 0) -> Draft:
        text, spans = self._spans(messages, tools, first)
        ends_open = text[spans[-1][0] : spans[-1][1]].endswith(tuple(self._closers))
        return Draft(text, spans, closed=not (ends_open or text[spans[-1][1] :].strip()))

    def _by_markers(self, row: ChatRow) -> Draft:
        from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415 - slow to import

        self._require_tools(row.tools)
        tools = row.tools or None
        try:
            (text,), (spans,) = render_jinja_template(
                conversations=[row.as_messages()],
                tools=tools,
                chat_template=self.tokenizer.get_chat_template(tools=tools),
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:
            raise EncodeError(f"the model's chat template refuses it: {error}") from error
        return Draft(text, spans, touching=True)

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

    def _batch(self, texts: list[str], special: bool) -> Any:
        return self.tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, verbose=False)

    def _encoded(self, draft: Draft, ids: list[int], offsets: Sequence[tuple[int, int]]) -> Encoded:
        """Which tokens are trained; and the end-of-text token, trained, so that the model learns to stop."""
        trained = _marks(offsets, draft.spans, draft.touching)
        end = self.tokenizer.eos_token_id
        if not draft.closed or end is None or (ids and ids[-1] == end):
            return Encoded(ids, trained)
        return Encoded([*ids, end], [*trained, 1])


def require_trained(row: Row, documents: Sequence[Encoded]) -> None:
    """Raise ``EncodeError`` for a row that has nothing to learn; a class is learned without a token of its text."""
    if not isinstance(row, ClassRow | PreferenceRow) and not all(any(encoded.trained) for encoded in documents):
        raise EncodeError("no token of it would be trained")


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


def _marks(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int | None]], touching: bool) -> list[int]:
    """1 for each token that begins within a span, or touches it; a token of no characters is in none."""
    flat = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets))
    starts, ends = flat[::2], flat[1::2]
    inside = np.zeros(len(starts), dtype=bool)
    for first, last in spans:
        begins = (ends > first) if touching else (starts >= first)
        inside |= begins & (starts < (ends if last is None else np.minimum(ends, last)))
    marks: list[int] = inside.astype(np.int64).tolist()
    return marks


def _answer(row: PreferenceRow | UnpairedRow) -> Turns:
    return row.chosen if isinstance(row, PreferenceRow) else row.completion


def _joined(prompt: Turns, answer: Turns) -> Turns:
    """Both are strings, or both are messages (``tuneloop_core.data.pairs``)."""
    return prompt + answer  # type: ignore[operator]
