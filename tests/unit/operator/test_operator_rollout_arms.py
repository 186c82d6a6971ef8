"""The stated test of canaries: each limit by a table, the exact tails by counting, the rates by a simulation."""

import math
from itertools import accumulate

import pytest
from rollout_traffic import CASES, rate

from tuneloop_core.api.rollout import CanaryLimits
from tuneloop_core.serving import Histogram
from tuneloop_operator.policy import arms
from tuneloop_operator.policy.arms import Arm, breaches


def around(count: int, slow: int, bound: float = 0.2) -> Histogram:
    """``count`` fast answers and ``slow`` ones of two seconds."""
    return Histogram(bounds=[bound / 2, bound, 1.0, 2.0], counts=list(accumulate([0, count, 0, slow, 0])))


@pytest.mark.parametrize(
    ("stable", "canary", "found"),
    [
        pytest.param(Arm(), Arm(), [], id="nothing measured"),
        pytest.param(Arm(450, 2), Arm(50, 0), [], id="no errors"),
        pytest.param(Arm(450, 2), Arm(50, 1), [], id="one error is no proof"),
        pytest.param(Arm(450, 0), Arm(50, 8), ["errors"], id="many errors"),
        pytest.param(Arm(450, 80), Arm(50, 9), [], id="both arms fail alike"),
        pytest.param(Arm(0, 0), Arm(50, 9), ["errors"], id="no other arm to compare with"),
        pytest.param(Arm(ttft=around(450, 0)), Arm(ttft=around(25, 25)), ["ttft"], id="slow first tokens"),
        pytest.param(Arm(ttft=around(450, 0)), Arm(ttft=around(49, 1)), [], id="one slow first token"),
        pytest.param(Arm(ttft=around(100, 0)), Arm(ttft=around(25, 25)), [], id="too few to know the stable arm's P95"),
        pytest.param(Arm(tpot=around(450, 0)), Arm(tpot=around(25, 25)), ["tpot"], id="slow tokens"),
        pytest.param(Arm(good=90, bad=10), Arm(good=10, bad=30), ["feedback"], id="feedback drops"),
        pytest.param(Arm(good=90, bad=10), Arm(good=33, bad=7), [], id="feedback within its limit"),
        pytest.param(Arm(good=90, bad=10), Arm(good=0, bad=9), [], id="too little feedback"),
    ],
)
def test_breaches(stable: Arm, canary: Arm, found: list[str]) -> None:
    assert [each.measure for each in breaches(stable, canary, CanaryLimits())] == found


def test_a_breach_says_what_was_found_and_the_limit() -> None:
    found = breaches(Arm(450, 0), Arm(50, 8), CanaryLimits())
    words = "8 of 50 requests failed, with the version before 0 of 450; limits.errorRate is 0.02"
    assert found[0].message == words


def test_a_limit_of_zero_and_of_one() -> None:
    assert breaches(Arm(4500, 0), Arm(50, 1), CanaryLimits(error_rate="0")) == ()  # one may be chance
    assert breaches(Arm(4500, 0), Arm(50, 3), CanaryLimits(error_rate="0"))
    assert breaches(Arm(450, 0), Arm(50, 50), CanaryLimits(error_rate="1")) == ()


@pytest.mark.parametrize(("count", "trials", "share"), [(3, 20, 0.05), (8, 50, 0.02), (20, 20, 0.5)])
def test_binomial_tail_is_the_sum(count: int, trials: int, share: float) -> None:
    terms = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(count, trials + 1)]
    assert arms.binomial_tail(count, trials, share) == pytest.approx(sum(terms))


@pytest.mark.parametrize(("count", "draws", "marked", "population"), [(6, 50, 6, 500), (5, 20, 12, 100), (4, 4, 4, 9)])
def test_hypergeometric_tail_is_the_sum(count: int, draws: int, marked: int, population: int) -> None:
    ways = [
        math.comb(marked, k) * math.comb(population - marked, draws - k) for k in range(count, min(draws, marked) + 1)
    ]
    assert arms.hypergeometric_tail(count, draws, marked, population) == pytest.approx(
        sum(ways) / math.comb(population, draws)
    )


def test_tails_that_are_not_above_the_mean_prove_nothing() -> None:
    assert arms.binomial_tail(1, 100, 0.02) == 1.0
    assert arms.hypergeometric_tail(1, 50, 10, 500) == 1.0


@pytest.mark.parametrize(
    ("case", "least", "most"),
    [("both versions alike", 0.0, 0.0), ("exactly at every limit", 0.0, 0.2), ("10 % errors", 0.5, 1.0),
     ("both versions fail 10 %", 0.0, 0.05), ("TTFT three times as long", 0.9, 1.0)],
)  # fmt: skip
def test_rates_of_false_alarm_and_detection(case: str, least: float, most: float) -> None:
    share, _ = rate(CASES[case], 0.1, 2000, 6)
    assert least <= share <= most
