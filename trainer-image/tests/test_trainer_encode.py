"""Which tokens are trained, by markers and by the span finder, checked by reading them back."""

from pathlib import Path

import pods
import pytest
from tuneloop_core.data.rows import ChatRow, CompletionRow, TextRow

from tuneloop_trainer.encode import Encoded, Encoder, load_encoder

tiny_model = pods.load_tiny_model()
ROW = ChatRow((("user", "What is it?"), ("assistant", "It is red."), ("user", "Sure?"), ("assistant", "Yes.")))


@pytest.fixture(scope="module")
def spans(tiny: Path) -> Encoder:
    return load_encoder(tiny)


@pytest.fixture(scope="module")
def markers(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("marked")
    return load_encoder(tiny_model.write_tiny_model(folder, chat_template=tiny_model.CHATML_MARKED))


def trained_text(encoder: Encoder, encoded: Encoded) -> str:
    ids = [token for token, mark in zip(encoded.ids, encoded.trained, strict=True) if mark]
    return str(encoder.tokenizer.decode(ids))


def test_both_ways_train_the_same_text(spans: Encoder, markers: Encoder) -> None:
    wanted = "It is red.<|im_end|>Yes.<|im_end|>"
    assert trained_text(spans, spans.encode(ROW)) == wanted
    assert trained_text(markers, markers.encode(ROW)) == wanted
    assert (spans.method(ROW), markers.method(ROW)) == ("SpanFinder", "Markers")


def test_only_the_completion_is_trained_and_an_end_is_added(spans: Encoder) -> None:
    encoded = spans.encode(CompletionRow("One and one is", " two."))
    assert trained_text(spans, encoded) == " two.<|im_end|>"
    assert encoded.ids[-1] == spans.tokenizer.eos_token_id


def test_plain_text_is_trained_whole(spans: Encoder) -> None:
    assert all(spans.encode(TextRow("All of this.")).trained)


def test_the_question_ends_where_the_answer_would_begin(spans: Encoder) -> None:
    question = spans.question(ROW)
    assert question is not None
    assert spans.tokenizer.decode(question.ids).endswith("Sure?<|im_end|>\n<|im_start|>assistant\n")
    assert (question.text, question.reference) == ("Sure?", "Yes.")
    encoded = spans.encode(ROW)
    assert encoded.ids[: len(question.ids)] == question.ids
    assert spans.question(TextRow("nothing is asked")) is None
