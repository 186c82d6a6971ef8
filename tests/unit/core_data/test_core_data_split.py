"""The split and the length counts."""

from decimal import Decimal

from tuneloop_core.data.lengths import Lengths
from tuneloop_core.data.rows import ChatRow, CompletionRow
from tuneloop_core.data.split import make_split
from tuneloop_core.data.survey import group_hash


def test_about_the_fraction_is_held_out_and_always_the_same() -> None:
    rows = [CompletionRow(f"question {number}", "a") for number in range(2000)]
    split = make_split(Decimal("0.1"), smallest_hash=0, seed=7)
    held_out = [row for row in rows if split.holds_out(row)]
    assert 160 <= len(held_out) <= 240
    assert held_out == [row for row in rows if make_split(Decimal("0.1"), 0, 7).holds_out(row)]


def test_another_seed_holds_out_other_rows() -> None:
    rows = [CompletionRow(f"question {number}", "a") for number in range(500)]
    sides = [[make_split(Decimal("0.5"), 0, seed).holds_out(row) for row in rows] for seed in (1, 2)]
    assert sides[0] != sides[1]


def test_rows_that_ask_the_same_are_on_one_side() -> None:
    first = ChatRow((("user", "same?"), ("assistant", "yes")))
    second = ChatRow((("user", "same?"), ("assistant", "indeed")))
    assert group_hash(first, 7) == group_hash(second, 7)


def test_at_least_one_row_is_held_out() -> None:
    rows = [CompletionRow(str(number), "a") for number in range(3)]
    smallest = min(group_hash(row, 7) for row in rows)
    split = make_split(Decimal("0.0001"), smallest, 7)
    assert sum(split.holds_out(row) for row in rows) == 1


def test_nothing_is_held_out_when_there_is_a_validation_file() -> None:
    assert not make_split(Decimal(0), 0, 7).holds_out(CompletionRow("", "a"))


def test_percentiles_are_exact_and_truncation_is_counted() -> None:
    lengths = Lengths(limit=90)
    for length in range(1, 101):
        lengths.add(length, trained=1)
    assert (lengths.percentile(50), lengths.percentile(95), lengths.longest) == (50, 95, 100)
    assert (lengths.truncated, lengths.tokens) == (10, sum(range(1, 91)) + 10 * 90)
    assert lengths.histogram() == [(32, 32), (64, 32), (128, 36)]


def test_no_rows_are_no_problem() -> None:
    assert (Lengths(10).percentile(50), Lengths(10).longest, Lengths(10).histogram()) == (0, 0, [])
