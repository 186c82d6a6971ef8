"""The rollout of a ModelDeployment at one look: gathers what its policy asks for, and hands its outcome to who acts.

Never writes to the API server, and keeps nothing but the gateways' counters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.rollout import Rollout, RolloutStatus
from tuneloop_core.constants import LABEL_REVISION
from tuneloop_core.serving import Adapter, AdapterList
from tuneloop_operator import names
from tuneloop_operator.kube.resources import CONFIGMAPS, Obj
from tuneloop_operator.names import Key
from tuneloop_operator.policy import bases, handover, reasons, rollout, succession, versions
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.armcounts import Step
from tuneloop_operator.policy.bases import Arriving, Turn
from tuneloop_operator.policy.candidates import Need
from tuneloop_operator.policy.course import Course
from tuneloop_operator.policy.handover import Told
from tuneloop_operator.policy.revisions import Chosen, is_ready
from tuneloop_operator.policy.rollout import ENDED, Seen
from tuneloop_operator.policy.serving import is_pod_ready
from tuneloop_operator.policy.versions import Choice, Pair
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.servers import gone, pods_of

LOOK_SECONDS = 2.0  # between looks at a rollout in progress


@dataclass(frozen=True)
class Look:
    """What one reconcile knows before its rollout is thought of."""

    deployment: ModelDeployment
    resolved: Sequence[Resolved]
    found: Mapping[int, Obj]  # Deployments by revision number
    chosen: Chosen | None
    replicas: int  # wanted in all
    base: str = ""  # resolved URI of the wanted model; empty while it is fetched
    asked: Sequence[Resolved] = ()  # the versions that the spec wants, where ``resolved`` are those to go on with
    turn: Turn | None = None  # from the revision that serves to one that takes other adapters
    leaving: str = ""  # rN: that one, where the spec was set back from it

    @property
    def need(self) -> Need:
        """What adapters of the wanted revision must fit."""
        return Need(self.base, self.deployment.spec.engine.lora.max_rank)

    @property
    def other(self) -> str:
        """The revision (rN) whose pods load others than those of the one that serves; empty without one."""
        if self.turn is None or not self.turn.new.base:
            return ""
        return self.leaving or (f"r{self.chosen.number}" if self.chosen else "")

    def arriving(self, serve: Sequence[Resolved]) -> Arriving | None:
        """What those pods load."""
        if self.leaving:
            return bases.leaving(self.leaving, serve, self.turn)
        return bases.arriving(self.other, self.asked, serve, self.turn)


class Rollouts:
    """Rollouts of all ModelDeployments of this process."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def plan(self, key: Key, look: Look) -> Course:
        """The next state of the deployment's rollout, and what follows from it."""
        spec = versions.canary_spec(look.deployment)
        if spec is None:
            self._context.gateways.arms.forget(key)
            return self._handover(key, beside(look))
        revision = succession.pair_of(look.deployment, look.found, look.chosen) if look.chosen else None
        wanted, look = look, _held(look, _serving(look, revision))
        pairs = self._pairs(look)
        choice, leaving = versions.choose(look.deployment, pairs), self._leaving(key, look, pairs)
        if choice.pair is None or leaving is not None:
            self._context.gateways.arms.forget(key)
            return self._course(key, look, pairs, choice.waits(), leaving or self._left(look))
        status = self._advance(key, look, spec, choice.pair)
        if status.kind == "Revision" and status.phase == "Promoted":
            look = wanted  # the new base's own adapters with it
        return self._course(key, look, pairs, choice, status)

    def _leaving(self, key: Key, look: Look, pairs: Sequence[Pair]) -> RolloutStatus | None:
        """The rollout before whose end no other begins."""
        adapter = versions.leaving(look.deployment, look.resolved, pairs, self._context.now())
        return adapter or self._withdrawal(key, look)

    def _withdrawal(self, key: Key, look: Look) -> RolloutStatus | None:
        """The rollout of a revision that the spec does not ask for any more, until the last of it is gone."""
        staying = [pod for pod in self._pods(key) if not pod["metadata"].get("deletionTimestamp")]
        there = [f"r{number}" for number in look.found]
        there += [pod["metadata"]["labels"].get(LABEL_REVISION, "") for pod in staying]
        why = "the spec was set back" if look.base else "the spec asks for another model"
        return succession.withdrawal(look.deployment.status.rollout, look.chosen, there, why, self._context.now())

    def _left(self, look: Look) -> RolloutStatus | None:
        """The last rollout, where nothing is rolled out."""
        known = look.deployment.status.rollout
        return known if known is None or known.phase in ENDED else None

    def _handover(self, key: Key, look: Look) -> Course:
        """Without a canary: each adapter's new version takes over once it is loaded."""
        known, now = look.deployment.status.adapters, self._context.now()
        need = look.turn.old if look.turn else look.need
        serve = handover.serving(look.resolved, known, self._told(key, look), need)
        listed, lingers = handover.listed(serve, look.resolved, known, self._listed(key), now)
        again = LOOK_SECONDS if lingers else None
        return Course(serve, listed, look.arriving(serve), look.chosen, look_again=again)

    def _pairs(self, look: Look) -> list[Pair]:
        found = versions.adapter_pairs(look.resolved, look.deployment)
        if look.chosen is None:
            return found
        revision = succession.pair_of(look.deployment, look.found, look.chosen)
        return [revision, *found] if revision else found

    def _advance(self, key: Key, look: Look, spec: Rollout, pair: Pair) -> RolloutStatus:
        now = self._context.now()
        before = versions.state_of(look.deployment, pair, now)
        see = self._see_revision if pair.canary.kind == "Revision" else self._see_adapter
        stable, canary = self._context.gateways.arms.measure(key, Step.of(before))
        seen = replace(see(key, look, before), stable=stable, canary=canary)
        return rollout.advance(spec, before, seen, versions.orders(look.deployment), now)

    # ---- what is known of new versions ----

    def _told(self, key: Key, look: Look) -> Told:
        """What the pods say that load these adapters: not those of the revision that takes others."""
        statuses, other = self._context.polls.statuses(key), look.other
        pods = [pod for pod in self._pods(key) if pod["metadata"]["labels"].get(LABEL_REVISION) != other]
        ready = [pod["status"].get("podIP", "") for pod in pods if is_pod_ready(pod)]
        asked = {pod.get("status", {}).get("podIP", "") for pod in pods}
        others = [status for ip, status in statuses.items() if ip in asked and ip not in ready]
        return Told([statuses.get(ip) for ip in ready], others)

    def _see_adapter(self, key: Key, look: Look, before: RolloutStatus) -> Seen:
        """Loaded in every ready pod, or refused by one."""
        ready = [pod["status"].get("podIP") for pod in self._pods(key) if is_pod_ready(pod)]
        statuses, engine_name = self._context.polls.statuses(key), f"{before.name}@{before.canary}"
        said = [s for ip in ready if ip in statuses for s in statuses[ip].adapters if s.engine_name == engine_name]
        loaded = sum(state.answers for state in said)
        failed = next((state.message for state in said if state.state == "Failed"), "") if not before.step else ""
        words = f"{loaded} of {len(ready)} ready pods have it"
        return Seen(ready=bool(ready) and loaded >= len(ready), idle=not look.replicas, failure=failed, waits_for=words)

    def _see_revision(self, key: Key, look: Look, before: RolloutStatus) -> Seen:
        """All of its own pods answer, or one of them crashes again and again."""
        there = look.found.get(int(before.canary[1:]))
        size = succession.canary_size(before, look.replicas)
        reason, words = succession.trouble(there, self._pods(key), before.canary)
        running = int(there["spec"].get("replicas", 0)) if there else 0
        return Seen(
            ready=running >= size and is_ready(there, size),
            full=running >= look.replicas and is_ready(there, look.replicas),
            idle=not look.replicas,
            failure=words if reason in (reasons.CRASHING, reasons.OOM_KILLED) else "",
            waits_for=words,
        )

    def _pods(self, key: Key) -> list[Obj]:
        return pods_of(self._context.cache, key)

    # ---- what follows ----

    def _course(
        self, key: Key, look: Look, pairs: Sequence[Pair], choice: Choice, status: RolloutStatus | None
    ) -> Course:
        deployment, pair, now = look.deployment, choice.pair, self._context.now()
        done = pair if pair and status and status.phase == "Promoted" else None
        serve = versions.serving(look.resolved, deployment, done)
        running = pair is not None and status is not None and status.phase not in ENDED
        canary = _wire(look.resolved, pair) if pair and running else None
        ended = pair is not None and status is not None and status.phase == "RolledBack"
        rejected = versions.remembered(deployment)
        if ended and pair is not None and status is not None:
            rejected = versions.rejected(deployment, pair.canary, status, now)
        refused = [*choice.refused, *(rejected[:1] if ended else [])]
        sizes, serving = self._revisions(look, pairs, pair, status)
        return Course(
            serve=serve,
            adapters=versions.loaded(serve, canary, self._listed(key), status, now),
            arriving=look.arriving(serve),
            chosen=look.chosen,
            sizes=sizes,
            serving=serving,
            status=status,
            rejected=rejected,
            refused=refused,
            waiting=[each.canary.name for each in choice.waiting],
            wrong_order=versions.unknown_orders(deployment, pairs, serve),
            look_again=LOOK_SECONDS if running or (status and versions.lingers(status, now)) else None,
        )

    def _revisions(
        self, look: Look, pairs: Sequence[Pair], pair: Pair | None, status: RolloutStatus | None
    ) -> tuple[dict[int, int] | None, str]:
        """Pods by revision, and the revision that serves; a revision that waits or was refused is not there."""
        revision = next((each for each in pairs if each.canary.kind == "Revision"), None)
        if revision is None:
            return _alone(look, status)
        if revision is pair and status is not None:
            promoted = status.phase == "Promoted"
            return succession.sizes(status, look.replicas), status.canary if promoted else status.stable
        return {int(revision.stable.id[1:]): look.replicas}, revision.stable.id

    def _listed(self, key: Key) -> AdapterList:
        """adapters.json as it is."""
        there = self._context.cache.get(CONFIGMAPS.kind, key.namespace, names.server(key.name))
        text = ((there or {}).get("data") or {}).get("adapters.json", "")
        return AdapterList.model_validate_json(text) if text else AdapterList()


def _alone(look: Look, status: RolloutStatus | None) -> tuple[dict[int, int] | None, str]:
    """The revision that serves, where what was to succeed it is withdrawn: however many of its pods answer."""
    if status is None or look.chosen is None or status.kind != "Revision" or status.phase != "RolledBack":
        return None, ""
    back = status.stable == f"r{look.chosen.number}"
    return (succession.sizes(status, look.replicas), status.stable) if back else (None, "")


def _serving(look: Look, revision: Pair | None) -> list[int]:
    """The revision that serves beside the wanted one; while that one's model is not known, what is chosen serves."""
    if revision is not None:
        return [int(revision.stable.id[1:])]
    return [look.chosen.number] if look.chosen and not look.base and look.chosen.number in look.found else []


def beside(look: Look) -> Look:
    """Without a canary: what serves goes on beside the wanted revision, until that answers.

    A newer one than the wanted is what the spec was set back from: it leaves, and is not what serves.
    """
    if not look.base or look.chosen is None:
        return _held(look, list(look.found))
    wanted, staying = look.chosen.number, _staying(look)
    newer = [number for number in staying if number > wanted and wanted in look.found]
    turn = bases.turn_of(look.found, newer, look.need)
    if turn is None or len(newer) < len(staying):
        return _held(look, [number for number in staying if number not in newer])
    return replace(look, turn=turn.back, leaving=f"r{max(newer)}")


def _staying(look: Look) -> list[int]:
    """Revisions beside the wanted one that go on answering, without a canary."""
    if look.chosen is None:
        return []
    leaving = gone(look.deployment, look.found, look.chosen, look.replicas, None)
    return [number for number in look.found if number not in (*leaving, look.chosen.number)]


def _held(look: Look, others: Sequence[int]) -> Look:
    """With the versions that serve on the revision about to be replaced, and those that come with the new one."""
    turn = bases.turn_of(look.found, others, look.need)
    return replace(look, asked=look.resolved, resolved=bases.held(look.resolved, look.deployment, turn), turn=turn)


def _wire(resolved: Sequence[Resolved], pair: Pair) -> Adapter | None:
    """The adapter's new version, as the server wants it."""
    if pair.canary.kind != "Adapter":
        return None
    return next((item.wire for item in resolved if item.name == pair.canary.name), None)
