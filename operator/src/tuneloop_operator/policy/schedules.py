"""Minimums by time of the week: which of spec.scaling.schedules holds at a moment. Pure.

A schedule begins where its cron says so on the clock of its time zone, and holds for its duration in real time, so a
day of 23 or 25 hours neither skips nor doubles it (Debian cron's rules, by ``cronsim``): a start inside the hour that
spring leaves out comes at the end of that hour, one inside the hour that autumn repeats comes once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from tuneloop_core.api.formats import parse_duration
from tuneloop_core.api.scaling import ScalingSchedule

FIELDS = 5


@dataclass(frozen=True)
class Floor:
    """At least so many replicas, and by which schedule."""

    replicas: int
    reason: str


def floor(schedules: Sequence[ScalingSchedule], now: datetime) -> Floor | None:
    """The highest minimum that holds now; one that cannot be read holds never (``problems`` tells it)."""
    held = [each for each in schedules if problem(each) is None and _holds(each, now)]
    if not held:
        return None
    highest = max(held, key=lambda each: each.min_replicas)
    words = f"schedule '{highest.cron}' {highest.time_zone}: at least {highest.min_replicas} for {highest.duration}"
    return Floor(highest.min_replicas, words)


def problems(schedules: Sequence[ScalingSchedule]) -> list[str]:
    """What is wrong with each schedule that cannot be read, in words with its place."""
    found = ((number, problem(each)) for number, each in enumerate(schedules))
    return [f"spec.scaling.schedules[{number}]: {words}" for number, words in found if words]


@lru_cache(maxsize=1024)
def problem(schedule: ScalingSchedule) -> str | None:
    """Why a schedule cannot be read; None when it can."""
    if len(schedule.cron.split()) != FIELDS:
        return f"cron '{schedule.cron}' needs five fields: minute hour day month weekday, such as '0 8 * * 1-5'"
    try:
        CronSim(schedule.cron, datetime.now(UTC))
    except CronSimError as error:
        return f"cron '{schedule.cron}': {error}; write minute hour day month weekday, such as '0 8 * * 1-5'"
    try:
        ZoneInfo(schedule.time_zone)
    except (LookupError, ValueError, OSError):
        return f"timeZone '{schedule.time_zone}' is not known; write an IANA name such as Europe/Berlin, or UTC"
    return None


def _holds(schedule: ScalingSchedule, now: datetime) -> bool:
    """Whether a start lies less than the duration ago; a start at this very second counts."""
    today = now.astimezone(UTC)
    earliest = today - timedelta(seconds=parse_duration(schedule.duration))
    for start in CronSim(schedule.cron, earliest.astimezone(ZoneInfo(schedule.time_zone))):
        begins = start.astimezone(UTC)
        if begins > earliest:  # cronsim counts on the wall clock, which an autumn night shows twice
            return begins <= today
    return False
