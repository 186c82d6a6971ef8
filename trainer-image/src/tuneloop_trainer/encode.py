"""Rows to tokens with the model's own tokenizer and chat template, and which of the tokens are trained.

The one place where text becomes training data: check counts with it, train and evaluation read what it wrote. Uses
the template's own ``{% generation %}`` markers where it has them, else the span finder. Never imports torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop_core.data.rows import ChatRow, CompletionRow, Row, TextRow
from tuneloop_core.data.spans import Message, SpanError, find_spans
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

MARKER = re.compile(r"{%-?\s*generation\s*-?%}")


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
        self._closers = sorted({token for token in tokenizer.all_special_tokens if token}, key=len, reverse=True)

    def method(self, row: Row) -> str:
        """How the trained part is found: Markers, SpanFinder, or Plain where no template is used."""
        if isinstance(row, ChatRow):
            return "Markers" if self._marked else "SpanFinder"
        return "Plain"

    def encode(self, row: Row) -> Encoded:
        """Tokens of a whole row; raises ``EncodeError``."""
        if isinstance(row, ChatRow):
            encoded = self._by_markers(row) if self._marked else self._by_spans(row)
        elif isinstance(row, CompletionRow):
            encoded = self._with_end(self._tokenize(row.prompt + row.completion, [(len(row.prompt), None)], True))
        else:
            encoded = self._with_end(self._tokenize(row.text, [(0, None)], True))
        if not any(encoded.trained):
            raise EncodeError("no token of it would be trained")
        return encoded

    def question(self, row: Row) -> Question | None:
        """The prompt before the last answer; None for plain text, which asks nothing."""
        if isinstance(row, TextRow):
            return None
        if isinstance(row, CompletionRow):
            ids = self._tokenize(row.prompt, [], True).ids
            return Question(ids, row.prompt, row.completion.strip())
        messages = row.as_messages()
        last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        text = self._render(messages[:last], add_generation_prompt=True)
        asked = next((message["content"] for message in reversed(messages[:last]) if message["role"] == "user"), "")
        return Question(self._tokenize(text, [], False).ids, asked, messages[last]["content"].strip())

    def example(self, row: Row) -> str:
        """The row as the model sees it."""
        if isinstance(row, ChatRow):
            return self._render(row.as_messages(), add_generation_prompt=False)
        return row.prompt + row.completion if isinstance(row, CompletionRow) else row.text

    def _by_spans(self, row: ChatRow) -> Encoded:
        try:
            text, spans = find_spans(self._render, row.as_messages(), self._closers)
        except SpanError as error:
            raise EncodeError(f"the trained part cannot be found: {error}") from error
        encoded = self._tokenize(text, spans, False)
        ends_open = text[spans[-1][0] : spans[-1][1]].endswith(tuple(self._closers))
        return encoded if ends_open or text[spans[-1][1] :].strip() else self._with_end(encoded)

    def _by_markers(self, row: ChatRow) -> Encoded:
        try:
            out = self.tokenizer.apply_chat_template(
                row.as_messages(), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:
            raise EncodeError(f"the model's chat template refuses it: {error}") from error
        return Encoded(list(out["input_ids"]), [int(value) for value in out["assistant_masks"]])

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:
            raise EncodeError(f"the model's chat template refuses it: {error}") from error
        return str(text)

    def _tokenize(self, text: str, spans: Sequence[tuple[int, int | None]], special: bool) -> Encoded:
        """Tokens of a text; those that begin within a span are trained."""
        out = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        trained = [int(_inside(start, end, spans)) for start, end in out["offset_mapping"]]
        return Encoded(list(out["input_ids"]), trained)

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


def _inside(start: int, end: int, spans: Sequence[tuple[int, int | None]]) -> bool:
    return any(first <= start < end and (last is None or start < last) for first, last in spans)
