"""How many replicas: the largest wish, up at once and down late. A pure function; what it remembers is passed along.

Windows are Knative's (KPA): load is averaged over a stable window of 60 s; when the mean of the last 6 s asks for
twice the replicas that answer, it panics: the short window counts too, and nothing goes down until a stable window has
passed without. Down goes only what no moment of the last ``scaleDownDelay`` asked for. A restart knows nothing of that
time, so what it finds counts as asked for: it scales nothing down before it has watched a whole delay itself.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from tuneloop_core.api.formats import parse_duration
from tuneloop_core.api.scaling import Scaling, ScalingTarget, ServiceLevel
from tuneloop_operator.policy import schedules
from tuneloop_operator.policy.wishes import History, Wish, engine_wishes, load_wish, needed, slo_wishes

STABLE_SECONDS = 60.0
PANIC_SECONDS = 6.0
PANIC_THRESHOLD = 2.0
SCALE_DOWN_DELAY = "5m"
WOKEN = "asleep, and a request came"
UNHEARD = "not every gateway says what it has in progress: nothing is taken away"
UNANSWERED = "it has not answered yet: one replica is wanted until it has"
PASSING = (UNHEARD, UNANSWERED)
"""Reasons that are over by themselves, while the number of replicas stays."""

Peaks = tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class State:
    """What a decision leaves for the next; small, and safely made anew by ``begin``."""

    replicas: int  # as last decided
    peaks: Peaks = ()  # (when, wish), wishes falling: the maximum of the delay is the first
    panic_until: float = float("-inf")
    panic_peak: int = 0


@dataclass(frozen=True)
class Decision:
    """How many replicas from now on, and why."""

    replicas: int
    reason: str
    state: State


@dataclass(frozen=True)
class Bounds:
    """Limits of the moment: the spec's, with the schedule that raises the lower one."""

    low: int
    high: int
    schedule: str = ""


def begin(now: float, scaling: Scaling, replicas: int) -> State:
    """The state of somebody who has just come and finds so many replicas: they count as asked for.

    In mode External only the one counts that a held request may have woken.
    """
    if scaling.mode == "External":
        return State(replicas, ((now, int(replicas > 0 and not scaling.replicas)),))
    return State(replicas, ((now, replicas),))


def start(scaling: Scaling) -> int:
    """Replicas of a deployment that is new: at least one, so that its first start is seen before users wait for it."""
    return max(1, scaling.min_replicas)


def first(decision: Decision, scaling: Scaling) -> Decision:
    """The decision on a deployment that has never answered: it does not sleep before its first start is seen.

    Nothing was served yet, so neither gateways nor load are the reason for what it begins with.
    """
    least = start(scaling)
    if decision.replicas > least or scaling.mode == "External":
        return decision
    reason = f"minReplicas is {least}" if scaling.min_replicas else UNANSWERED
    return Decision(least, reason, replace(decision.state, replicas=least))


def delay_seconds(scaling: Scaling) -> float:
    """How long load must be low before replicas go."""
    return parse_duration(scaling.scale_down_delay or SCALE_DOWN_DELAY)


def window_seconds(scaling: Scaling) -> float:
    """The stable window: 60 s, or the delay where that is shorter, but never less than the panic window."""
    return max(PANIC_SECONDS, min(STABLE_SECONDS, delay_seconds(scaling)))


def decide(  # noqa: PLR0913 - the whole world of the decision, spelled out
    now: float, wall: datetime, history: History, scaling: Scaling, slo: ServiceLevel | None, state: State
) -> Decision:
    """Replicas from now on. ``now`` is a clock that never jumps; ``wall`` is for schedules only."""
    if scaling.mode == "External":
        return _wake(now, history, scaling, state)
    limits = bounds(scaling, wall)
    wish, state = _panic(now, history, scaling, best_wish(now, history, scaling, slo), state)
    if not history.latest.complete and wish.replicas < state.replicas:
        wish = Wish(state.replicas, UNHEARD)
    peaks = _remember(state.peaks, now, wish.replicas, delay_seconds(scaling))
    wanted = max(peaks[0][1], _in_flight(history, scaling, state.replicas))
    replicas = min(max(wanted, limits.low), limits.high)
    asleep = state.replicas == 0 and history.latest.active
    reason = WOKEN if asleep and replicas == 1 else _reason(replicas, wanted, wish, limits, scaling)
    return Decision(replicas, reason, replace(state, replicas=replicas, peaks=peaks))


def _wake(now: float, history: History, scaling: Scaling, state: State) -> Decision:
    """Mode External: what the scale subresource says, and one while requests come, until the delay after the last."""
    latest, woken = history.latest, state.peaks[0][1] if state.peaks else 0
    wish = int(latest.active) if latest.complete else max(woken, int(latest.active))
    peaks = _remember(state.peaks, now, wish, delay_seconds(scaling))
    asked = scaling.replicas or 0
    replicas = max(asked, peaks[0][1])
    reason = "spec.scaling.replicas" if replicas == asked else "a request came: one replica until the delay is over"
    return Decision(replicas, reason, replace(state, replicas=replicas, peaks=peaks))


def bounds(scaling: Scaling, wall: datetime) -> Bounds:
    """minReplicas (or the schedule above it) and maxReplicas (left out: minReplicas, but at least one)."""
    high = scaling.max_replicas or max(1, scaling.min_replicas)
    floor = schedules.floor(scaling.schedules, wall)
    if floor is None or floor.replicas <= scaling.min_replicas:
        return Bounds(scaling.min_replicas, high)
    return Bounds(min(floor.replicas, high), high, floor.reason)


def best_wish(now: float, history: History, scaling: Scaling, slo: ServiceLevel | None) -> Wish:
    """The largest of all wishes; of equal ones the first, which is the load's."""
    since = now - window_seconds(scaling)
    calm = load_wish(history, _target(scaling), since)
    return max((calm, *engine_wishes(history), *slo_wishes(history, slo, since)), key=lambda wish: wish.replicas)


def _panic(now: float, history: History, scaling: Scaling, wish: Wish, state: State) -> tuple[Wish, State]:
    """The wish as the short window has it, and the state of the panic."""
    short = needed(history.mean_load(now - PANIC_SECONDS), _target(scaling))
    entered = short >= PANIC_THRESHOLD * max(1, history.sized) and history.latest.active
    until = now + window_seconds(scaling) if entered else state.panic_until
    if now >= until:
        return wish, replace(state, panic_until=float("-inf"), panic_peak=0)
    peak = max(state.panic_peak, short, wish.replicas)
    if peak > wish.replicas:
        wish = Wish(peak, f"load jumped: {peak} times what a replica takes within {PANIC_SECONDS:.0f} s")
    return wish, replace(state, panic_until=until, panic_peak=peak)


def _remember(peaks: Peaks, now: float, wish: int, delay: float) -> Peaks:
    """The peaks with this wish: those too old, or no higher than a later one, are forgotten."""
    kept = tuple((at, replicas) for at, replicas in peaks if now - at < delay and replicas > wish)
    return (*kept, (now, wish))


def _in_flight(history: History, scaling: Scaling, current: int) -> int:
    """What the requests in progress need, of the replicas there are: a stream is never cut to save a replica."""
    latest = history.latest
    return min(current, max(needed(latest.ongoing, _target(scaling)), int(latest.load > 0)))


def _reason(replicas: int, wanted: int, wish: Wish, limits: Bounds, scaling: Scaling) -> str:
    if replicas == 0:
        return f"no request for {scaling.scale_down_delay or SCALE_DOWN_DELAY}"
    if replicas > wanted:
        return limits.schedule or f"minReplicas is {limits.low}"
    capped = f"; maxReplicas is {limits.high}" if wanted > limits.high else ""
    if wish.replicas >= wanted:
        return f"{wish.reason}{capped}"
    held = f"the last {scaling.scale_down_delay or SCALE_DOWN_DELAY} asked for {wanted}"
    return f"{held}, now {wish.replicas}: {wish.reason}{capped}"


def _target(scaling: Scaling) -> int:
    return (scaling.target or ScalingTarget()).ongoing_requests
