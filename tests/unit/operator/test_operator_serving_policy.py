"""Decisions on a ModelDeployment, without a cluster."""

from typing import Any

import pytest
from operator_world import FETCHED
from serving_facts import DIGEST, MODEL, NOW, Obj, deployment, facts, k8s_deployment, pod, revision, server

from tuneloop_core.api import ArtifactStatus, Condition, FineTuneJob, FineTuneJobStatus, ModelDeployment, ModelStatus
from tuneloop_core.api.affinity import LabelSelector
from tuneloop_core.api.method import Method
from tuneloop_core.api.modeldeployment_status import AdapterStatus, RevisionStatus
from tuneloop_core.stages import Stage
from tuneloop_operator.policy import adapters, candidates, reasons, revisions
from tuneloop_operator.policy.actions import CreateStage, DeleteJob
from tuneloop_operator.policy.adapters import Sources
from tuneloop_operator.policy.candidates import Candidate, Need
from tuneloop_operator.policy.course import Course
from tuneloop_operator.policy.modelfetch import ModelFacts, judge_model
from tuneloop_operator.policy.serving import NO_KEY, summarize
from tuneloop_operator.policy.succession import OFFER
from tuneloop_operator.policy.verdicts import StageFacts, State, Verdict


def job(conditions: list[Condition] | None = None, **status: Any) -> FineTuneJob:
    spec = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "hf://datasets/o/d"}}
    made = FineTuneJob.model_validate({"metadata": {"name": "one"}, "spec": spec})
    return made.model_copy(update={"status": FineTuneJobStatus(conditions=conditions or [], **status)})


def artifact(kind: str = "Adapter") -> ArtifactStatus:
    return ArtifactStatus(kind=kind, digest=DIGEST, path="artifacts/" + "d" * 64)  # type: ignore[arg-type]


class OneJob:
    """The namespace's jobs, of which there is at most one."""

    def __init__(self, job: FineTuneJob | None) -> None:
        self._job = job

    def find(self, _name: str) -> Candidate | None:
        return candidates.read(self._job.to_dict()) if self._job else None

    def matching(self, _selector: LabelSelector) -> list[Candidate]:
        raise AssertionError("nothing is selected here")


def resolve(found: FineTuneJob | None, known: list[AdapterStatus] | None = None) -> adapters.Resolved:
    return adapters.resolve(deployment().spec.adapters, known or [], Sources(OneJob(found)), Need(MODEL.uri, 32))[0]


KNOWN = AdapterStatus(name="bot", digest=DIGEST, path="artifacts/x", state="Ready")


def test_an_absent_job_is_waited_for_unless_its_version_is_known() -> None:
    waiting = resolve(None)
    assert (waiting.digest, waiting.reason, waiting.stalled) == ("", reasons.WAITING_FOR_JOB, False)
    assert "there is none of that name" in waiting.message
    assert resolve(None, [KNOWN]) == adapters.Resolved("bot", DIGEST, "artifacts/x")


def test_an_unfinished_job_is_waited_for_while_the_known_version_is_served() -> None:
    waiting = resolve(job(stage="Training"), [KNOWN])
    assert waiting.message == "waiting for FineTuneJob one (Training); still serving version dddddddddddd"
    assert waiting.wire is not None


def test_a_failed_job_stalls() -> None:
    why = Condition(type="Failed", status="True", last_transition_time="x", reason="GateFailed", message="missed by 1")
    found = resolve(job([why]))
    assert found.stalled
    assert found.message.startswith("FineTuneJob one failed (GateFailed: missed by 1)")


def test_wrong_artifacts_stall() -> None:
    assert resolve(job(artifact=artifact("Model"))).reason == reasons.WRONG_ARTIFACT
    other = job(artifact=artifact(), model=ModelStatus(uri="hf://other/base@1"))
    assert resolve(other).reason == reasons.WRONG_BASE
    assert "was trained on hf://other/base@1, but this deployment serves hf://o/m@abc" in resolve(other).message


def test_a_finished_job_gives_its_version() -> None:
    found = resolve(job(artifact=artifact(), model=MODEL))
    assert (found.digest, found.reason, found.job, found.base) == (DIGEST, "", "one", MODEL.uri)


def test_another_commit_of_the_base_is_refused_and_says_what_to_pin() -> None:
    found = resolve(job(artifact=artifact(), model=ModelStatus(uri="hf://o/m@older")))
    assert (found.digest, found.reason, found.stalled) == ("", reasons.WRONG_BASE, True)
    assert "set model.revision: older, or train it again" in found.message


def test_a_rank_beyond_the_engines_room_is_refused_before_any_server_is_asked() -> None:
    large = job(artifact=artifact(), model=MODEL)
    large = large.model_copy(update={"spec": large.spec.model_copy(update={"method": Method(lora={"rank": 64})})})
    found = resolve(large)
    assert (found.digest, found.reason) == ("", reasons.ADAPTER_MISFIT)
    assert found.message == "FineTuneJob one has rank 64, and engine.lora.maxRank is 32: raise it to at least 64"


def state(**more: Any) -> tuple[str, str]:
    """(condition that is True besides the parts', its reason)."""
    status = summarize(deployment(), facts(**more))
    true = {item.type: item.reason for item in status.conditions if item.status == "True"}
    for kind in ("Ready", "Reconciling", "Stalled"):
        if kind in true:
            return kind, true[kind]
    return "", next(item.reason for item in status.conditions if item.type == "Ready")


def test_ready_tells_the_truth() -> None:
    assert state() == ("Ready", reasons.READY)
    assert state(servers={}) == ("Reconciling", reasons.ADAPTERS_LOADING)
    assert state(servers={"10.0.0.1": server("Failed", "rank 128 > 32")}) == ("Stalled", reasons.ADAPTER_FAILED)
    assert state(replicas=0, pods=[]) == ("Ready", reasons.SCALED_TO_ZERO)
    bad = {"schedules": [{"cron": "0 25 * * *", "duration": "1h", "minReplicas": 2}]}
    told = summarize(deployment(scaling=bad), facts()).conditions
    assert [item.reason for item in told if item.type == "Stalled"] == [reasons.INVALID_SPEC]
    asleep = summarize(deployment(scaling=bad), facts(replicas=0, pods=[])).conditions[0]
    assert (asleep.type, asleep.status, asleep.reason) == ("Ready", "True", reasons.SCALED_TO_ZERO)
    assert asleep.message.startswith("asleep: wakes on the first request; spec.scaling.schedules[0]: cron '0 25")
    not_ready = revision(ready=False, ready_replicas=0)
    assert state(revisions=[not_ready], pods=[pod(ready=False)]) == ("Reconciling", reasons.ROLLING_OUT)
    waiting = adapters.Resolved("bot", reason=reasons.WAITING_FOR_JOB, message="waiting for FineTuneJob one")
    assert state(resolved=[waiting]) == ("Reconciling", reasons.WAITING_FOR_JOB)
    stalled = Verdict(State.STALLED, "ModelNotFound", "hf://o/m: not found")
    assert state(model=stalled, revisions=[], pods=[]) == ("Stalled", "ModelNotFound")


def test_a_spec_that_came_back_is_judged_by_its_own_revision() -> None:
    """r2 was rolled back and has gone; it is remembered, and nobody waits for it."""
    gone = revision(name="r2", replicas=0, ready_replicas=0, ready=False)
    back = Course(chosen=revisions.Chosen(1, "server:1", "f", new=False))

    def ready(course: Course) -> tuple[str, str]:
        found = summarize(deployment(), facts(revisions=[gone, revision()], course=course)).conditions
        return next((item.status, item.reason) for item in found if item.type == "Ready")

    assert ready(back) == ("True", reasons.READY)
    assert ready(Course()) == ("False", reasons.ROLLING_OUT)


def test_ready_says_that_no_key_opens_it() -> None:
    def words(**more: Any) -> str:
        return summarize(deployment(), facts(**more)).conditions[0].message

    assert words() == "1 replica answers at http://g/team/v1"
    assert words(closed=True) == f"1 replica answers at http://g/team/v1{NO_KEY}"
    assert words(closed=True, replicas=0, pods=[]) == f"asleep: wakes on the first request{NO_KEY}"
    assert NO_KEY.startswith("; no key opens it: set spec.access.keys (python -m tuneloop_gateway.keys new")


def test_what_an_adapter_waits_for_is_said_while_the_pods_are_waited_for_too() -> None:
    waiting = adapters.Resolved("bot", reason=reasons.WAITING_FOR_JOB, message="waiting for FineTuneJob one")
    not_ready = revision(ready=False, ready_replicas=0)
    status = summarize(deployment(), facts(resolved=[waiting], revisions=[not_ready], pods=[pod(ready=False)]))
    said = {item.type: item for item in status.conditions}
    assert said["Reconciling"].reason == reasons.ROLLING_OUT
    assert said["AdaptersReady"].reason == reasons.WAITING_FOR_JOB
    assert said["AdaptersReady"].message == "0 of 1 adapters are loaded; adapter bot: waiting for FineTuneJob one"


def test_a_quota_refusal_of_a_deployment_is_lifted_up() -> None:
    newest = k8s_deployment(1, 0)
    newest["status"]["conditions"] = [
        {
            "type": "ReplicaFailure",
            "status": "True",
            "message": "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2",
        }
    ]
    not_ready = revision(ready=False, ready_replicas=0)
    assert state(judged=newest, revisions=[not_ready], pods=[]) == ("Reconciling", reasons.QUOTA_EXCEEDED)


def test_models_say_what_is_answered_now() -> None:
    status = summarize(deployment(), facts())
    assert [(item.name, item.engine_name, item.ready) for item in status.models] == [
        ("chat", "chat", True),
        ("bot", "bot@dddddddddddd", True),
    ]
    asleep = summarize(deployment(), facts(pods=[pod(ready=False)]))
    assert [item.ready for item in asleep.models] == [False, False]


def model_job(*conditions: Obj, source: str = "hf://o/m@main", attempt: str = "1") -> Obj:
    annotations = {"tuneloop.dev/model-source": source, "tuneloop.dev/attempt": attempt}
    metadata = {"name": "chat-model", "uid": "j", "annotations": annotations, "ownerReferences": [{"uid": "owner"}]}
    return {"metadata": metadata, "spec": {}, "status": {"conditions": list(conditions)}}


def serves(source: str, base: str = "", path: str = "") -> Obj:
    """A revision's Deployment, made for this."""
    made = k8s_deployment(1, 1)
    made["metadata"]["annotations"] = {"tuneloop.dev/model-source": source} | (
        {"tuneloop.dev/base": base} if base else {}
    )
    made["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [{"mountPath": "/model", "subPath": path}]
    return made


def judge(made: ModelDeployment, found: Obj | None, served: str = "", pods: tuple[Obj, ...] = ()) -> Verdict:
    return judge_model(made, ModelFacts(NOW, StageFacts(found, pods), [serves(served)] if served else [])).verdict


def test_the_model_is_fetched_once_for_what_is_asked() -> None:
    assert judge(deployment(), None).actions == (CreateStage(Stage.FETCH),)
    known = deployment({"model": MODEL.to_dict()})
    assert judge(known, None).state is State.DONE
    assert judge(known, None, served="hf://o/m@main").state is State.DONE
    assert judge(known, None, served="hf://o/m@v1").actions == (CreateStage(Stage.FETCH),)
    other = deployment({"model": MODEL.to_dict()}, model={"uri": "hf://o/other"})
    assert judge(other, None).actions == (CreateStage(Stage.FETCH),)
    assert judge(other, model_job()).actions == (DeleteJob(Stage.FETCH, "chat-model", "j"),)


def test_a_source_that_came_back_is_the_model_of_the_revision_that_has_it() -> None:
    """r2 with another model was tried and rolled back: the status still has that one."""
    other = ModelStatus(uri="hf://o/other@def", commit="def", path="models/o/other/def", bytes=7)
    made = deployment({"model": other.to_dict()})
    first = serves("hf://o/m@main", MODEL.uri, MODEL.path)
    second = serves("hf://o/other@main", other.uri, other.path)
    for served in ([first], [second, first]):
        found = judge_model(made, ModelFacts(NOW, StageFacts(model_job(source="hf://o/other@main")), served))
        assert found.verdict.state is State.DONE, "nothing is fetched again: a branch may have moved since"
        assert found.model == MODEL
    same = judge_model(
        deployment({"model": MODEL.to_dict() | {"bytes": 5}}), ModelFacts(NOW, StageFacts(None), [first])
    )
    assert same.model is not None
    assert same.model.bytes == 5, "the status knows more of it"
    wants_other = deployment({"model": other.to_dict()}, model={"uri": "hf://o/other"})
    back = judge_model(wants_other, ModelFacts(NOW, StageFacts(None), [first])).verdict
    assert back.actions == (CreateStage(Stage.FETCH),), "no revision has it"


def test_another_digest_of_a_registry_is_another_model() -> None:
    first, second = (f"sha256:{digit * 64}" for digit in "12")
    model = {"uri": f"oci://r.example.com/m:v1@{first}", "commit": first, "path": "models/oci/1"}
    for asked, state in (("", State.DONE), (f"@{first}", State.DONE), (f"@{second}", State.PENDING)):
        made = deployment({"model": model}, model={"uri": f"oci://r.example.com/m:v1{asked}"})
        assert judge(made, None).state is state


def test_a_failed_model_fetch_is_tried_again_by_its_own_record() -> None:
    def failed(at: str, attempt: str) -> Obj:
        return model_job({"type": "Failed", "status": "True", "lastTransitionTime": at}, attempt=attempt)

    soon = judge(deployment(), failed("2026-11-23T11:59:50Z", "2"))
    assert (soon.state, soon.look_again) == (State.STALLED, 50.0)
    due = judge(deployment(), failed("2026-11-23T11:58:00Z", "2"))
    assert due.actions == (DeleteJob(Stage.FETCH, "chat-model", "j"),)


def test_a_fetched_model_is_taken_over() -> None:
    import json  # noqa: PLC0415

    message = json.dumps({"stage": "fetch", "outcome": "Succeeded", "result": FETCHED})
    ended = {"terminated": {"exitCode": 0, "message": message, "finishedAt": "x"}}
    done = {
        "metadata": {"creationTimestamp": "x"},
        "status": {"phase": "Succeeded", "containerStatuses": [{"state": ended}]},
    }
    complete = model_job({"type": "Complete", "status": "True"})
    found = judge_model(deployment(), ModelFacts(NOW, StageFacts(complete, (done,))))
    assert found.model is not None
    assert found.model.path == FETCHED["modelPath"]


WORDS = "the engine could not load this model: ValueError: NobodysModel"


def broken_pod(revision: str, ip: str = "10.0.0.2") -> Obj:
    """Its engine ends again and again."""
    made = pod(ip, ready=False)
    made["metadata"]["labels"]["tuneloop.dev/revision"] = revision
    ended = {"terminated": {"exitCode": 1, "message": WORDS}}
    waits = {"waiting": {"reason": "CrashLoopBackOff"}}
    made["status"]["containerStatuses"] = [{"state": waits, "lastState": ended, "restartCount": 3}]
    return made


def test_an_engine_that_refuses_the_model_stalls_in_its_own_words_while_the_old_revision_serves() -> None:
    found = [revision(name="r2", ready=False, ready_replicas=0), revision()]
    status = summarize(deployment(adapters=[]), facts(resolved=(), revisions=found, pods=[pod(), broken_pod("r2")]))
    stalled = next(item for item in status.conditions if item.type == "Stalled")
    assert (stalled.status, stalled.reason) == ("True", reasons.CRASHING)
    assert WORDS in stalled.message
    assert stalled.message.endswith("r1 serves meanwhile")
    assert status.models[0].ready


STARTING = {"ready": False, "ready_replicas": 0}


@pytest.mark.parametrize(
    ("pods", "told", "words"),
    [
        ([pod(ready=False), broken_pod("r2")], "Reconciling", ". r1 starts meanwhile"),
        ([broken_pod("r2")], "Reconciling", ". r1 starts meanwhile"),  # its pod is not there yet
        ([broken_pod("r1"), broken_pod("r2", "10.0.0.3")], "Stalled", WORDS),
    ],
)
def test_waking_with_a_bad_revision_stalls_nothing_while_the_one_before_it_starts(
    pods: list[Obj], told: str, words: str
) -> None:
    found = [revision(name="r2", **STARTING), revision(**STARTING)]
    status = summarize(deployment(adapters=[]), facts(resolved=(), revisions=found, pods=pods, servers={}))
    said = {item.type: item for item in status.conditions if item.type in ("Reconciling", "Stalled")}
    assert {kind: item.reason for kind, item in said.items()} == {told: reasons.CRASHING}
    assert words in said[told].message
    gone = [revision(name="r2", **STARTING)]
    assert state(resolved=(), revisions=gone, pods=[broken_pod("r2")], servers={}) == ("Stalled", reasons.CRASHING)


def test_the_start_of_a_canary_is_not_waited_for_where_the_stable_revision_cannot_start() -> None:
    found = [revision(name="r2", **STARTING), revision(**STARTING)]
    course = Course(serving="r1")
    assert state(resolved=(), course=course, revisions=found, pods=[broken_pod("r1")]) == ("Stalled", reasons.CRASHING)


def homeless_pod(revision: str) -> Obj:
    """No node has an accelerator for it."""
    made = pod("", ready=False)
    made["metadata"]["labels"]["tuneloop.dev/revision"] = revision
    words = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    made["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": words}]}
    return made


@pytest.mark.parametrize(
    ("older", "serving", "offered"),
    [([revision()], "", True), ([], "", False), ([revision()], "r2", False)],
    ids=["another serves", "the only one", "a canary is beside it"],
)
def test_recreate_is_offered_where_there_is_no_room_for_a_second_revision(
    older: list[RevisionStatus], serving: str, offered: bool
) -> None:
    found, pods = [revision(name="r2", **STARTING), *older], [homeless_pod("r2"), *([pod()] if older else [])]
    known = facts(resolved=(), revisions=found, pods=pods, course=Course(serving=serving))
    told = next(item for item in summarize(deployment(adapters=[]), known).conditions if item.type == "Reconciling")
    assert told.reason == reasons.UNSCHEDULABLE
    assert told.message.endswith(OFFER) == offered


def test_recreate_is_offered_where_a_quota_has_no_room_for_a_second_revision() -> None:
    newest = k8s_deployment(2, 0)
    newest["status"]["conditions"] = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q"}]
    found = [revision(name="r2", **STARTING), revision()]
    told = summarize(deployment(adapters=[]), facts(resolved=(), revisions=found, judged=newest)).conditions
    said = next(item for item in told if item.type == "Reconciling")
    assert (said.reason, said.message.endswith(OFFER)) == (reasons.QUOTA_EXCEEDED, True)
