"""The decision on replicas: each signal, the windows, the delay, the limits; and whole load traces."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from autoscale_parts.simulator import Machine, changes, simulate
from autoscale_parts.traces import TRACES, Trace

from tuneloop_core.api.scaling import Scaling, ServiceLevel
from tuneloop_operator.policy.autoscale import State, begin, decide
from tuneloop_operator.policy.wishes import EngineSample, Felt, History, Sample

MONDAY = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
NOW = 1000.0


def scaling(**fields: Any) -> Scaling:
    base: dict[str, Any] = {"minReplicas": 0, "maxReplicas": 10, "target": {"ongoingRequests": 10}}
    return Scaling.model_validate(base | fields)


def calm(replicas: int) -> State:
    """Somebody who has watched for long and found nothing to do."""
    return State(replicas)


def steady(load: int, *, seconds: int = 60, **fields: Any) -> tuple[Sample, ...]:
    return tuple(Sample(NOW - seconds + 1 + second, load, **fields) for second in range(seconds))


def engines(running: float, waiting: float, kv_cache: float) -> tuple[EngineSample, ...]:
    return (EngineSample(NOW - 1, running, waiting, kv_cache), EngineSample(NOW, running, waiting, kv_cache))


FELT = Felt(100, ttft_p95=0.8, tpot_p95=0.02)
SLO = ServiceLevel(ttft_p95="500ms", tpot_p95="50ms")


@pytest.mark.parametrize(
    ("history", "slo", "wanted", "words"),
    [
        (History(steady(25), ready=3), None, 3, "25.0 requests in progress or held, a replica takes 10"),
        (History(steady(30), ready=3), None, 3, "30.0 requests"),
        (History(steady(0), ready=3), None, 0, "no request for 5m"),
        (History(steady(0, ended=1), ready=1), None, 1, "0.0 requests in progress"),
        (History(steady(1), engines(20, 10, 0.3), ready=2), None, 3, "10.0 requests wait in the engines, which run 20"),
        (History(steady(1), engines(2, 90, 0.3), ready=2), None, 4, "90.0 requests wait"),
        (History(steady(1), engines(2, 0, 0.95), ready=3), None, 4, "the KV cache is 95% full"),
        (History(steady(1), engines(2, 0, 0.80), ready=3), None, 3, "the KV cache is 80% full"),
        (History(steady(20), felt=FELT, ready=2), SLO, 3, "TTFT P95 800ms of 500ms"),
        (
            History(steady(20), felt=replace(FELT, ttft_p95=0.1, tpot_p95=0.06), ready=2),
            SLO,
            3,
            "TPOT P95 60ms of 50ms",
        ),
        (History(steady(8), felt=replace(FELT, ttft_p95=0.4), ready=4), SLO, 4, "TTFT P95 400ms of 500ms"),
        (History(steady(8), felt=replace(FELT, ttft_p95=0.4), ready=4, beside=1), SLO, 3, "TTFT P95 400ms of 500ms"),
        (History(steady(20), felt=FELT, ready=3, beside=1), SLO, 3, "TTFT P95 800ms of 500ms"),
        (History(steady(8), felt=replace(FELT, ttft_p95=0.2), ready=4), SLO, 1, "8.0 requests"),
        (History(steady(3), felt=FELT, ready=4), SLO, 1, "3.0 requests"),  # another replica would make nothing faster
        (History(steady(8), felt=replace(FELT, requests=3), ready=4), SLO, 1, "8.0 requests"),
        (History(steady(900), ready=10), None, 10, "maxReplicas is 10"),
    ],
)
def test_the_largest_wish_wins(history: History, slo: ServiceLevel | None, wanted: int, words: str) -> None:
    found = decide(NOW, MONDAY, history, scaling(), slo, calm(min(history.ready, wanted)))
    assert (found.replicas, words in found.reason) == (wanted, True), found.reason


def test_a_held_request_wakes_at_once() -> None:
    history = History((*steady(0, seconds=50), Sample(NOW, queued=1)))
    found = decide(NOW, MONDAY, history, scaling(), None, calm(0))
    assert (found.replicas, found.reason) == (1, "asleep, and a request came")


def test_minimum_and_maximum() -> None:
    still = History(steady(0), ready=2)
    assert decide(NOW, MONDAY, still, scaling(minReplicas=2), None, calm(2)).reason == "minReplicas is 2"
    only_minimum = Scaling(min_replicas=3)
    assert decide(NOW, MONDAY, History(steady(900), ready=3), only_minimum, None, calm(3)).replicas == 3
    assert decide(NOW, MONDAY, still, only_minimum, None, calm(0)).replicas == 3


def test_down_only_to_what_no_moment_of_the_delay_asked_for() -> None:
    state, history = calm(5), History(steady(42), ready=5)
    state = decide(NOW, MONDAY, history, scaling(), None, state).state
    low = History((Sample(NOW + 100, 5),), ready=5)
    later = decide(NOW + 100, MONDAY, low, scaling(), None, state)
    assert later.replicas == 5
    assert later.reason == "the last 5m asked for 5, now 1: 5.0 requests in progress or held, a replica takes 10"
    assert decide(NOW + 299, MONDAY, low, scaling(), None, later.state).replicas == 5
    assert decide(NOW + 300, MONDAY, low, scaling(), None, later.state).replicas == 1


def test_a_restart_scales_nothing_down_before_a_whole_delay() -> None:
    state, still = begin(NOW, scaling(), 4), History(steady(0), ready=4)
    assert decide(NOW + 299, MONDAY, still, scaling(), None, state).replicas == 4
    assert decide(NOW + 301, MONDAY, still, scaling(), None, state).replicas == 0


def test_a_gateway_that_is_not_heard_holds_what_there_is() -> None:
    deaf = History(steady(0, complete=False), ready=3)
    found = decide(NOW, MONDAY, deaf, scaling(), None, calm(3))
    assert found.replicas == 3
    assert "not every gateway says" in found.reason
    assert decide(NOW, MONDAY, History(), scaling(), None, calm(3)).replicas == 3
    half_deaf = History(steady(60, complete=False), ready=3)
    assert decide(NOW, MONDAY, half_deaf, scaling(), None, calm(3)).replicas == 6


def test_never_below_what_streams_in_flight_need() -> None:
    history = History((*steady(1, seconds=60), Sample(NOW, 38)), ready=5)
    found = decide(NOW, MONDAY, history, scaling(scaleDownDelay="0s"), None, calm(5))
    assert found.replicas == 4
    one = History((Sample(NOW, 1),), ready=5)
    assert decide(NOW, MONDAY, one, scaling(scaleDownDelay="0s"), None, calm(5)).replicas == 1


def test_panic_counts_the_short_window_and_does_not_go_down() -> None:
    jump = tuple(Sample(NOW - 60 + second, 2 if second < 54 else 80) for second in range(61))
    found = decide(NOW, MONDAY, History(jump, ready=1), scaling(scaleDownDelay="30s"), None, calm(1))
    assert found.replicas == 8
    after = tuple(Sample(NOW + second, 2) for second in range(30))
    still = decide(NOW + 29, MONDAY, History(after, ready=8), scaling(scaleDownDelay="30s"), None, found.state)
    assert still.replicas == 8
    later = decide(NOW + 61, MONDAY, History(after, ready=8), scaling(scaleDownDelay="30s"), None, still.state)
    assert later.replicas == 1
    twice_needed = History(jump, ready=5)  # 80 is less than twice what five take
    assert decide(NOW, MONDAY, twice_needed, scaling(), None, calm(1)).replicas < 8


def test_schedules_raise_the_minimum_within_the_maximum() -> None:
    office = {"cron": "0 8 * * 1-5", "timeZone": "Europe/Berlin", "duration": "10h", "minReplicas": 3}
    still = History(steady(0))
    found = decide(NOW, MONDAY, still, scaling(schedules=[office]), None, calm(0))
    assert found.replicas == 3
    assert found.reason == "schedule '0 8 * * 1-5' Europe/Berlin: at least 3 for 10h"
    assert decide(NOW, MONDAY, still, scaling(schedules=[office], maxReplicas=2), None, calm(0)).replicas == 2
    night = MONDAY.replace(hour=20)
    assert decide(NOW, night, still, scaling(schedules=[office]), None, calm(3)).replicas == 0


def test_external_is_what_the_scale_says_but_a_request_wakes_one() -> None:
    asleep = Scaling(mode="External", replicas=0, scale_down_delay="1m")
    held, still = History((Sample(NOW, queued=9),)), History((Sample(NOW + 59),), ready=1)
    woken = decide(NOW, MONDAY, held, asleep, None, begin(NOW - 99, asleep, 0))
    assert woken.replicas == 1
    assert decide(NOW + 59, MONDAY, still, asleep, None, woken.state).replicas == 1
    assert decide(NOW + 60, MONDAY, still, asleep, None, woken.state).replicas == 0
    five = Scaling(mode="External", replicas=5)
    assert decide(NOW, MONDAY, held, five, None, begin(NOW, five, 2)).replicas == 5
    assert decide(NOW, MONDAY, still, five, None, begin(NOW, five, 9)).replicas == 5
    # A person's zero holds at once, where nobody asks.
    assert decide(NOW, MONDAY, still, asleep, None, begin(NOW, five, 5)).replicas == 0


# ---- whole traces, with replicas that take a minute to start


def run(name: str, replicas: int = 0, **fields: Any) -> list[Any]:
    limits = scaling(maxReplicas=8, target={"ongoingRequests": 12}, **fields)
    return simulate(TRACES[name], limits, replicas=replicas)


def test_step_is_met_within_seconds_and_left_after_the_delay() -> None:
    rows = run("step")
    assert rows[59].wanted == 0
    assert rows[60].wanted == 1
    assert rows[75].wanted >= 3, "32 requests in progress need three"
    assert all(row.wanted >= 3 for row in rows[75:500])
    assert min(row.wanted for row in rows[600:1260]) >= 2
    assert rows[1260 + 60 + 310].wanted == 0


def test_ramp_keeps_up_without_a_queue() -> None:
    rows = run("ramp")
    warm = [row for row in rows if row.second > 150]
    assert max(row.waiting + row.held for row in warm) <= 16
    assert len(changes(rows)) <= 12


def test_burst_panics_and_holds() -> None:
    rows = run("burst", replicas=1, minReplicas=1)
    assert rows[299].wanted == 1
    assert max(row.wanted for row in rows[300:330]) >= 5
    assert all(row.wanted >= 5 for row in rows[330:600]), "nothing goes within the delay"


def test_flapping_does_not_flap() -> None:
    rows = run("flapping")
    down = [row for before, row in pairwise(rows) if row.wanted < before.wanted]
    assert len(down) <= 8, "eighty half minutes, and the delay lets few of them through"


def test_diurnal_sleeps_at_night_and_a_schedule_holds_the_day() -> None:
    rows = run("diurnal")
    assert rows[0].wanted == 0
    assert rows[-1].wanted == 0
    noon = [{"cron": "15 0 * * *", "duration": "30m", "minReplicas": 5}]
    held = run("diurnal", schedules=noon)
    assert all(row.wanted >= 5 for row in held[900:2700])


def test_a_lone_request_wakes_and_the_whole_delay_without_one_sleeps() -> None:
    rows = run("lone")
    assert rows[30].wanted == 1
    last = max(row.second for row in rows[:3600] if row.load)
    asleep = next(row.second for row in rows if row.second > 30 and row.wanted == 0)
    assert asleep - last == 300


@pytest.mark.parametrize("name", sorted(TRACES))
def test_never_below_what_streams_need_on_any_trace(name: str) -> None:
    rows = run(name, scaleDownDelay="10s")
    for before, row in pairwise(rows):
        if row.wanted < before.wanted:
            assert row.wanted * 12 >= row.load - row.held
    assert not [row for row in rows if row.load and not row.wanted]


def test_a_trace_is_the_same_every_time() -> None:
    trace = Trace("short", 200, TRACES["burst"].rate)
    assert simulate(trace, scaling(), machine=Machine(cold_start=5)) == simulate(
        trace, scaling(), machine=Machine(cold_start=5)
    )
