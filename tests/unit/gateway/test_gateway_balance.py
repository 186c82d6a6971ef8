"""Which endpoint is picked, and how one that fails leaves and comes back."""

from dataclasses import dataclass, field

import pytest

from tuneloop_gateway import outlier
from tuneloop_gateway.balance import pick
from tuneloop_gateway.outlier import FAILURES, Health, Rules
from tuneloop_gateway.retry import CEILING, RATIO, RESERVE, RetryBudget


@dataclass(eq=False)
class End:
    ongoing: int = 0
    until: float = 0.0
    seed: int = 0
    health: Health = field(init=False)

    def __post_init__(self) -> None:
        self.health = Health(until=self.until)


@pytest.mark.parametrize(
    ("ongoing", "chance", "expected"),
    [
        ([3, 1, 2], 0.0, 1),
        ([1, 1, 1], 0.0, 0),
        ([1, 1, 1], 0.5, 1),
        ([1, 1, 1], 0.999, 2),
        ([2, 0, 0], 0.9, 2),
        ([5], 0.7, 0),
    ],
)
def test_the_least_ongoing(ongoing: list[int], chance: float, expected: int) -> None:
    ends = [End(each) for each in ongoing]
    assert pick(ends, 10.0, chance) is ends[expected]


def test_an_ejected_endpoint_is_passed_over_and_then_gets_one_probe() -> None:
    ends = [End(0, until=12.0), End(9)]
    assert pick(ends, 11.9, 0.0) is ends[1]
    assert pick(ends, 12.0, 0.0) is ends[0]
    ends[0].health.probing = True
    assert pick(ends, 13.0, 0.0) is ends[1], "the others wait for the probe's answer"


def test_when_all_are_ejected_the_first_to_return_is_tried() -> None:
    ends = [End(0, 15.0), End(5, 12.0)]
    assert pick(ends, 10.0, 0.0) is ends[1]


def test_none_twice_for_one_request() -> None:
    ends = [End(0), End(5)]
    assert pick(ends, 10.0, 0.0, [ends[0]]) is ends[1]
    assert pick(ends, 10.0, 0.0, ends) is None
    assert pick([], 10.0, 0.0) is None


def test_a_prompt_s_key_leads_to_working_endpoints_only() -> None:
    ends = [End(seed=1), End(seed=2)]
    chosen = pick(ends, 10.0, 0.0, key=77)
    assert chosen is not None
    chosen.health.until = 20.0
    other = pick(ends, 10.0, 0.0, key=77)
    assert other is not None
    assert other is not chosen


# ---- ejection ----


def fail(health: Health, others: list[Health], now: float, times: int, rules: Rules | None = None) -> list[float]:
    return [outlier.failed(health, others, now, rules or Rules()) for _ in range(times)]


def test_failures_in_a_row_eject_for_growing_times() -> None:
    health, rules = Health(), Rules(eject_seconds=5, eject_longest_seconds=12)
    others, now, waits = [health, Health()], 100.0, []
    assert fail(health, others, now, FAILURES, rules) == [0.0] * (FAILURES - 1) + [5.0]
    for _ in range(3):
        now = health.until
        assert health.due(now)
        health.probing = True
        waits.append(outlier.failed(health, others, now, rules))
    assert waits == [10.0, 12.0, 12.0]


def test_a_whole_answer_begins_the_count_anew() -> None:
    health = Health()
    fail(health, [health, Health()], 0.0, FAILURES - 1)
    health.succeeded()
    assert fail(health, [health, Health()], 0.0, FAILURES - 1) == [0.0] * (FAILURES - 1)


@pytest.mark.parametrize(
    ("replicas", "share", "most"), [(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (4, 0, 0), (4, 1, 4)]
)
def test_never_more_than_a_share(replicas: int, share: float, most: int) -> None:
    all_of_them = [Health() for _ in range(replicas)]
    for health in all_of_them:
        fail(health, all_of_them, 10.0, FAILURES * 2, Rules(eject_share=share))
    assert sum(health.out(10.0) for health in all_of_them) == most


def test_a_refused_connection_ejects_at_once_and_once() -> None:
    health = Health()
    assert outlier.unreachable(health, 10.0, Rules()) == 5.0
    assert outlier.unreachable(health, 11.0, Rules()) == 0.0, "it is out already"


def test_the_first_byte_of_a_probe_brings_back_and_the_next_failure_sends_out_again() -> None:
    health = Health()
    fail(health, [health, Health()], 10.0, FAILURES)
    health.probing = True
    assert health.answered()
    assert not health.out(10.0)
    assert not health.answered(), "it was back already"
    assert fail(health, [health, Health()], 20.0, 1) == [10.0], "a stream that broke after a good start"
    health.probing = True
    health.gave_up()
    assert health.due(100.0), "a client that left taught nothing, so the next request is the probe"


# ---- the retry budget ----


def test_retries_are_a_share_of_the_requests() -> None:
    budget = RetryBudget()
    calm = sum(budget.take() for _ in range(1000))
    assert calm == RESERVE
    allowed = 0
    for _ in range(1000):  # an outage: every request would like to be sent three times
        budget.request()
        allowed += budget.take() + budget.take()
    assert allowed == pytest.approx(1000 * RATIO, abs=1)
    for _ in range(10_000):
        budget.request()
    assert budget.left == CEILING
