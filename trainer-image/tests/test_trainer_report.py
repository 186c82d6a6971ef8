"""report.html: a golden page, hostile text, and charts that hold whatever the numbers are.

After a wanted change: ``GOLDEN=write pytest tests/test_trainer_report.py``, then look at the page.
"""

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from pages import Page, Text, svg_texts
from tuneloop_core.api.finetunejob import FineTuneJobSpec

from tuneloop_trainer.charts import HEIGHT, WIDTH, bar_chart, compact, line_chart, number, ticks
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.publicspec import public_spec
from tuneloop_trainer.report import report_html
from tuneloop_trainer.reported import report_document

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "\"'><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>&amp;{{}}"


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / "report.json").read_text())
    return loaded


def test_a_manifest_never_shows_signatures() -> None:
    secret = "https://h.example.com/rows.jsonl?X-Amz-Signature=s3cret"
    source = {"uri": secret, "validation": {"uri": secret}}
    tasks = [{"name": "quiz", "source": {"uri": secret}}, {"name": "arc_easy"}]
    body = {"model": {"uri": "hf://o/m"}, "dataset": source, "evaluation": {"tasks": tasks}}
    spec = FineTuneJobSpec.model_validate(body)
    told = json.dumps(public_spec(spec).to_dict())
    assert "s3cret" not in told
    assert json.loads(told) == json.loads(json.dumps(spec.to_dict()).replace("?X-Amz-Signature=s3cret", ""))


def test_golden_page() -> None:
    page, target = report_html(document()), GOLDEN / "report.html"
    if os.environ.get("GOLDEN") == "write":
        target.write_text(page, encoding="utf-8")
    assert page == target.read_text(encoding="utf-8")


def test_nothing_is_loaded_and_nothing_runs() -> None:
    Page(report_html(document())).require_self_contained()


def poisoned(value: Any) -> Any:
    """Every text of the document made hostile."""
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text() -> None:
    wanted, found = Page(report_html(document())), Page(report_html(poisoned(document())))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in wanted.tags]
    assert {name for _, each in found.tags for name in each} == {name for _, each in wanted.tags for name in each}
    assert HOSTILE in found.text


def test_held_out_files_that_were_named_are_told() -> None:
    changed = copy.deepcopy(document())
    validation = {"uri": "s3://evals/support/", "files": ["golden-*.jsonl"]}
    changed["manifest"]["spec"]["dataset"] = {"validation": validation}
    assert "Held-out rowss3://evals/support/ golden-*.jsonl" in Page(report_html(changed)).text
    changed["manifest"]["spec"]["dataset"] = {"validation": {"fraction": "0.1"}}
    assert "Held-out rows" not in Page(report_html(changed)).text


def test_long_answers_are_cut_and_new_scores_are_named() -> None:
    changed = copy.deepcopy(document())
    changed["samples"][0]["tuned"] = "x" * 10_000
    changed["manifest"]["evaluation"]["tuned"]["rewardMargin"] = 0.25
    page = Page(report_html(changed))
    assert "x" * 4000 not in page.text
    assert "x" * 3999 + "…" in page.text
    assert "Reward margin" in page.text


def test_parts_that_are_missing_are_left_out() -> None:
    text = Page(report_html({"manifest": document()["manifest"]})).text
    assert "Answers side by side" not in text
    assert "Row lengths" not in text


def test_samples_and_histograms_come_from_the_work_folder(tmp_path: Path) -> None:
    (tmp_path / "work/train").mkdir(parents=True)
    (tmp_path / "work/check").mkdir()
    sample = {"question": "q", "reference": "r", "base": "b", "tuned": "t"}
    (tmp_path / "work/train/samples.jsonl").write_text(f"{json.dumps(sample)}\n" * 40)
    (tmp_path / "work/check/dataset-report.json").write_text('{"train_histogram": [[32, 7], [64, 2]]}')
    found = report_document({}, {}, {}, Paths(tmp_path), with_samples=True)
    assert found["samples"] == [sample] * 32
    assert found["histograms"] == {"training": [[32.0, 7.0], [64.0, 2.0]]}
    assert report_document({}, {}, {}, Paths(tmp_path), with_samples=False)["samples"] == []


def test_broken_reports_do_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "work/check").mkdir(parents=True)
    (tmp_path / "work/check/dataset-report.json").write_text('{"train_histogram": 7}')
    found = report_document({}, {}, {}, Paths(tmp_path), with_samples=True)
    assert (found["samples"], found["histograms"]) == ([], {})


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.12, 0.31, [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]),
        (3, 3, [3, 4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("points", [[], [(1, 2)], [(1, math.nan), (2, 3)], [(1, math.inf), (2, math.inf)]])
def test_no_line_without_two_numbers(points: list[tuple[float, float]]) -> None:
    assert line_chart(points, "t", "x") == ""


def overlaps(one: Text, other: Text) -> bool:
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom


LENGTHS = [str(2**power) if power < 10 else f"{2 ** (power - 10)}k" for power in range(5, 20)] + ["1M"]


@pytest.mark.parametrize(
    "chart",
    [
        *(line_chart([(1, high), (last, low)], "t", "step")
          for last in (2, 39, 1_200, 10_000, 1_000_000)
          for low, high in ((0.0001, 0.0007), (0.11, 12.9), (-0.004, 0.69), (2.0, 2.0), (120.0, 98_000.0))),
        *(bar_chart([(name, count) for name in LENGTHS[:bars]], "t", "tokens in a row, at most (1k is 1,024)")
          for bars in (1, 5, 16) for count in (1, 9_999, 10_000, 999_960, 123_456_789)),
    ],
)  # fmt: skip
def test_words_of_a_chart_lie_inside_it_and_apart(chart: str) -> None:
    found = svg_texts(chart)
    assert found
    for text in found:
        assert text.left >= 0, text
        assert text.right <= WIDTH, text
        assert text.top >= 0, text
        assert text.bottom <= HEIGHT, text
    for index, text in enumerate(found):
        assert not [(text, other) for other in found[index + 1 :] if overlaps(text, other)]


def test_time_and_price_stand_beside_the_plan() -> None:
    usage = {"trainSeconds": 75.2, "price": 0.0101, "acceleratorSeconds": 75.2}
    text = Page(report_html({**document(), "usage": usage})).text
    assert "Time of the train stage1m2s1m15s" in text
    assert "Price0.0123 EUR0.0101 EUR" in text


def test_a_page_without_answers_says_why() -> None:
    changed = copy.deepcopy(document())
    changed["samples"], changed["manifest"]["spec"] = [], {"evaluation": {"publishSamples": False}}
    assert "Answers are not shown: evaluation.publishSamples is false." in Page(report_html(changed)).text


def test_a_flat_line_and_bars_of_zero() -> None:
    assert "nan" not in line_chart([(1, 2), (2, 2), (3, math.nan)], "t", "x")
    assert bar_chart([("a", 0), ("b", 0)], "t", "x") == ""
    assert bar_chart([], "t", "x") == ""


@pytest.mark.parametrize(
    ("value", "shown"), [(1234567, "1,234,567"), (0.000123456, "0.0001235"), (2.0, "2"), (1.5, "1.5")]
)
def test_numbers_for_people(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(7, "7"), (9999, "9,999"), (12_345, "12.3k"), (999_960, "1000k"), (1_500_000, "1.5M"), (2e9, "2.0G")],
)
def test_counts_on_bars_are_short(value: float, shown: str) -> None:
    assert compact(value) == shown
