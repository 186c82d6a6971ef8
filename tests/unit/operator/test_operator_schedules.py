"""Schedules: the last start by the clock of a zone, on days of 23, 24 and 25 hours; and what cannot be read."""

from datetime import UTC, datetime

import pytest

from tuneloop_core.api.scaling import ScalingSchedule
from tuneloop_operator.policy.schedules import floor, problems


def schedule(cron: str, duration: str = "2h", zone: str = "UTC", least: int = 2) -> ScalingSchedule:
    return ScalingSchedule(cron=cron, duration=duration, time_zone=zone, min_replicas=least)


@pytest.mark.parametrize(
    ("cron", "zone", "duration", "at", "holds"),
    [
        ("0 8 * * *", "UTC", "2h", "2026-11-23T07:59:59Z", False),
        ("0 8 * * *", "UTC", "2h", "2026-11-23T08:00:00Z", True),
        ("0 8 * * *", "UTC", "2h", "2026-11-23T09:59:59Z", True),
        ("0 8 * * *", "UTC", "2h", "2026-11-23T10:00:00Z", False),
        ("0 22 * * *", "UTC", "10h", "2026-11-23T07:59:00Z", True),  # over midnight
        ("0 8 * * 1-5", "UTC", "2h", "2026-11-22T09:00:00Z", False),  # a Sunday
        ("0 8 * * 1-5", "Asia/Tokyo", "1h", "2026-11-22T23:30:00Z", True),  # Monday there
        ("0 0 * * *", "UTC", "24h", "2026-11-23T00:00:00Z", True),
        # Winter and summer: 08:00 in Berlin is 07:00 and 06:00 UTC.
        ("0 8 * * *", "Europe/Berlin", "1h", "2026-01-15T07:30:00Z", True),
        ("0 8 * * *", "Europe/Berlin", "1h", "2026-07-15T06:30:00Z", True),
        ("0 8 * * *", "Europe/Berlin", "1h", "2026-07-15T07:30:00Z", False),
        # 29 March: 02:00 to 03:00 is left out. 02:30 comes at 03:00, which is 01:00 UTC, and holds its whole hour.
        ("30 2 * * *", "Europe/Berlin", "1h", "2026-03-29T00:59:00Z", False),
        ("30 2 * * *", "Europe/Berlin", "1h", "2026-03-29T01:00:00Z", True),
        ("30 2 * * *", "Europe/Berlin", "1h", "2026-03-29T01:59:00Z", True),
        ("30 2 * * *", "Europe/Berlin", "1h", "2026-03-29T02:00:00Z", False),
        # One that began before the jump holds its real hours: 01:00 (00:00 UTC) to 04:00 (02:00 UTC).
        ("0 1 * * *", "Europe/Berlin", "2h", "2026-03-29T01:59:00Z", True),
        ("0 1 * * *", "Europe/Berlin", "2h", "2026-03-29T02:00:00Z", False),
        # 25 October: 02:00 to 03:00 comes twice. 02:30 comes once, the first time (00:30 UTC).
        ("30 2 * * *", "Europe/Berlin", "30m", "2026-10-25T00:29:00Z", False),
        ("30 2 * * *", "Europe/Berlin", "30m", "2026-10-25T00:30:00Z", True),
        ("30 2 * * *", "Europe/Berlin", "30m", "2026-10-25T01:00:00Z", False),
        ("30 2 * * *", "Europe/Berlin", "30m", "2026-10-25T01:35:00Z", False),
        ("30 2 * * *", "Europe/Berlin", "2h", "2026-10-25T02:29:00Z", True),
        ("30 2 * * *", "Europe/Berlin", "2h", "2026-10-25T02:30:00Z", False),
        ("0 0 30 2 *", "UTC", "2h", "2026-03-01T00:00:00Z", False),  # there is no 30 February
    ],
)
def test_holds(cron: str, zone: str, duration: str, at: str, holds: bool) -> None:
    found = floor([schedule(cron, duration, zone)], datetime.fromisoformat(at))
    assert (found is not None) == holds


def test_the_highest_that_holds_counts() -> None:
    now = datetime(2026, 11, 23, 9, tzinfo=UTC)
    found = floor(
        [schedule("0 8 * * *", least=2), schedule("0 9 * * *", least=5), schedule("0 12 * * *", least=9)], now
    )
    assert found is not None
    assert (found.replicas, found.reason) == (5, "schedule '0 9 * * *' UTC: at least 5 for 2h")
    assert floor([], now) is None


def test_what_cannot_be_read_is_told_and_holds_never() -> None:
    bad = [
        schedule("0 25 * * *"),
        schedule("@daily"),
        schedule("0 8 * * *", zone="Europe/Atlantis"),
    ]
    words = problems([*bad, schedule("0 8 * * *")])
    assert len(words) == 3
    assert words[0].startswith("spec.scaling.schedules[0]: cron '0 25 * * *': Bad hour; write minute hour")
    assert "five fields" in words[1]
    assert words[2] == (
        "spec.scaling.schedules[2]: timeZone 'Europe/Atlantis' is not known; write an IANA name such as "
        "Europe/Berlin, or UTC"
    )
    assert floor(bad, datetime(2026, 11, 23, 8, tzinfo=UTC)) is None
