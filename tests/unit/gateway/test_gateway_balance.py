"""Which endpoint is picked."""

from dataclasses import dataclass

import pytest

from tuneloop_gateway.balance import pick


@dataclass(eq=False)
class End:
    ongoing: int = 0
    rests_until: float = 0.0


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


def test_a_resting_endpoint_is_passed_over_until_its_time() -> None:
    ends = [End(0, rests_until=12.0), End(9)]
    assert pick(ends, 11.9, 0.0) is ends[1]
    assert pick(ends, 12.0, 0.0) is ends[0]


def test_when_all_rest_the_first_to_wake_is_tried() -> None:
    ends = [End(0, 15.0), End(5, 12.0)]
    assert pick(ends, 10.0, 0.0) is ends[1]


def test_none_twice_for_one_request() -> None:
    ends = [End(0), End(5)]
    assert pick(ends, 10.0, 0.0, [ends[0]]) is ends[1]
    assert pick(ends, 10.0, 0.0, ends) is None
    assert pick([], 10.0, 0.0) is None
