"""Adapters made elsewhere: fetched once, judged each for itself, kept from the servers where they do not fit."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tuneloop_core.adapterconfig import AdapterFacts, AdapterFetchResult, kind_faults, read_facts
from tuneloop_core.api.affinity import LabelSelector
from tuneloop_core.api.modeldeployment import AdapterSpec, ModelDeployment
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.settings import ImageSettings, Settings
from tuneloop_core.stages import Stage
from tuneloop_operator.build.adapterfetch import build_adapter_fetch
from tuneloop_operator.policy import adapters, reasons
from tuneloop_operator.policy.actions import CreateStage, DeleteJob
from tuneloop_operator.policy.adapterfetch import Fetched, is_known, job_tag, judge_fetch
from tuneloop_operator.policy.adapters import Resolved, Sources, source_of
from tuneloop_operator.policy.candidates import Candidate, Need
from tuneloop_operator.policy.verdicts import StageFacts, State, Verdict

Obj = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
COMMIT = "c" * 40
NEED = Need(f"hf://acme/base@{COMMIT}", 32)
DIGEST = "sha256:" + "d" * 64


def spec(**source: str) -> AdapterSpec:
    return AdapterSpec.model_validate({"name": "bot", "from": {"uri": "hf://acme/bot"} | source})


def found(rank: int = 16, base: str = "hf://acme/base") -> Fetched:
    facts = AdapterFacts(rank=rank, base=base)
    result = AdapterFetchResult(
        uri=f"hf://acme/bot@{COMMIT}", path="artifacts/" + "d" * 64, digest=DIGEST, bytes=1, facts=facts
    )
    return Fetched(Verdict(State.DONE, reasons.SUCCEEDED, ""), result)


class NoJobs:
    def find(self, _name: str) -> Candidate | None:
        return None

    def matching(self, _selector: LabelSelector) -> list[Candidate]:
        return []


def resolve(
    fetched: Fetched | None, known: AdapterStatus | None = None, asked: AdapterSpec | None = None, need: Need = NEED
) -> Resolved:
    sources = Sources(NoJobs(), {"bot": fetched} if fetched else {})
    return adapters.resolve([asked or spec()], [known] if known else [], sources, need)[0]


def status_of(resolved: Resolved) -> AdapterStatus:
    return adapters.statuses([resolved], {}, 0)[0]


@pytest.mark.parametrize(
    ("rank", "base", "reason", "words"),
    [
        (32, "hf://acme/base", "", ""),
        (32, f"hf://acme/base@{COMMIT}", "", ""),
        (32, "", "", ""),
        (32, "pvc://models/base", "", ""),  # a copy of the same base may lie anywhere: nothing is concluded
        (33, "hf://acme/base", reasons.ADAPTER_MISFIT, "has rank 33, and engine.lora.maxRank is 32"),
        (8, "hf://acme/other", reasons.WRONG_BASE, "was trained on hf://acme/other, but this deployment serves"),
        (8, f"hf://acme/base@{'0' * 40}", reasons.WRONG_BASE, f"set model.revision: {'0' * 40}"),
    ],
)
def test_what_was_fetched_is_judged_by_its_config(rank: int, base: str, reason: str, words: str) -> None:
    resolved = resolve(found(rank, base))
    assert (resolved.reason, resolved.stalled, resolved.wire is None) == (reason, bool(reason), bool(reason))
    assert words in resolved.message


def test_a_version_in_the_status_is_not_fetched_again_and_judged_anew() -> None:
    known = status_of(resolve(found(64)))
    assert (known.state, known.digest, known.reason) == ("Failed", DIGEST, reasons.ADAPTER_MISFIT)
    assert is_known(spec(), known, known.source)
    assert resolve(None, known).wire is None
    raised = resolve(None, known, need=Need(NEED.base, 64))
    assert (raised.digest, raised.reason, raised.wire is None) == (DIGEST, "", False)


def test_a_changed_source_is_fetched_while_the_version_before_is_served() -> None:
    known, moved = status_of(resolve(found())), spec(revision="v2")
    assert not is_known(moved, known, source_of(moved.source))
    denied = Fetched(Verdict(State.STALLED, "AccessDenied", "hf://acme/bot: no token was given"))
    resolved = resolve(denied, known, moved)
    assert (resolved.digest, resolved.reason, resolved.stalled) == (DIGEST, "AccessDenied", True)
    assert resolved.message == "adapter bot: hf://acme/bot: no token was given"
    again = resolve(Fetched(Verdict(State.STALLED, "AccessDenied", resolved.message)), known, moved)
    assert again.message == resolved.message, "a message that comes back from the status does not grow"


def test_on_its_way_it_is_waited_for() -> None:
    for reason in (reasons.CREATED, reasons.RUNNING, reasons.STARTING):
        resolved = resolve(Fetched(Verdict(State.PENDING, reason, "the fetch pod is starting")))
        assert (resolved.reason, resolved.stalled) == (reasons.ADAPTER_FETCHING, False)
    pulled = resolve(Fetched(Verdict(State.PENDING, reasons.IMAGE_NOT_PULLED, "image x")))
    assert pulled.reason == reasons.IMAGE_NOT_PULLED


def test_another_secret_is_another_job_but_not_another_version() -> None:
    first, second = spec(credentialsSecret="old"), spec(credentialsSecret="new")
    assert job_tag(first) != job_tag(second)
    assert source_of(first.source) == source_of(second.source)
    assert len({source_of(spec(**more).source) for more in ({}, {"revision": "v2"}, {"uri": "hf://acme/bat"})}) == 3


def job(*conditions: Obj, attempt: str = "1") -> Obj:
    metadata = {"name": "chat-a-x", "uid": "j", "ownerReferences": [{"uid": "owner"}]}
    return {
        "metadata": metadata | {"annotations": {"tuneloop.dev/attempt": attempt}},
        "spec": {},
        "status": {"conditions": list(conditions)},
    }


def ended(**said: Any) -> Obj:
    state = {"terminated": {"exitCode": 0, "message": json.dumps({"stage": "fetch", **said}), "finishedAt": "x"}}
    phase = "Succeeded" if said["outcome"] == "Succeeded" else "Failed"
    return {"metadata": {"creationTimestamp": "x"}, "status": {"phase": phase, "containerStatuses": [{"state": state}]}}


def test_the_fetch_is_made_judged_and_made_again() -> None:
    assert judge_fetch(StageFacts(), None, "owner", NOW).verdict.actions == (CreateStage(Stage.FETCH),)
    result = found().found
    assert result is not None
    pod = ended(outcome="Succeeded", result=result.model_dump(mode="json", by_alias=True))
    complete = StageFacts(job({"type": "Complete", "status": "True"}), (pod,))
    assert judge_fetch(complete, None, "owner", NOW).found == result
    refused = ended(outcome="Failed", reason="AdapterUnsupported", message="it uses DoRA")
    failed = job({"type": "Failed", "status": "True", "lastTransitionTime": "2026-11-23T11:59:50Z"})
    fresh = judge_fetch(StageFacts(failed, (refused,)), None, "owner", NOW).verdict
    assert (fresh.state, fresh.reason, fresh.look_again) == (State.STALLED, "AdapterUnsupported", 20.0)
    aged = job({"type": "Failed", "status": "True", "lastTransitionTime": "2026-11-23T11:00:00Z"})
    due = judge_fetch(StageFacts(aged, (refused,)), None, "owner", NOW).verdict
    assert due.actions == (DeleteJob(Stage.FETCH, "chat-a-x", "j"),)
    told = AdapterStatus(name="bot", state="Failed", reason="AdapterUnsupported", message="it uses DoRA")
    retried = judge_fetch(StageFacts(job(attempt="2")), told, "owner", NOW).verdict
    assert (retried.state, retried.reason, retried.message) == (State.STALLED, "AdapterUnsupported", "it uses DoRA")


def test_its_pod_may_write_artifacts_and_its_own_folder_only() -> None:
    asked = spec(uri="s3://bucket/bot", endpoint="http://minio:9000", credentialsSecret="keys")
    made = ModelDeployment.model_validate(
        {"metadata": {"name": "chat", "namespace": "team", "uid": "u"}, "spec": {"model": {"uri": "hf://acme/base"}}}
    )
    settings = Settings(images=ImageSettings(trainer="trainer:1", server="server:1"))
    manifest = build_adapter_fetch(made, asked, job_tag(asked), settings)
    assert manifest["metadata"]["name"] == f"chat-a-{job_tag(asked)}"
    assert manifest["metadata"]["labels"]["app.kubernetes.io/component"] == "fetch", "the policy for egress is by it"
    pod = manifest["spec"]["template"]["spec"]
    mounts = {item["mountPath"]: item for item in pod["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {"/store/artifacts", "/work", "/tmp", "/secrets/adapter"}
    assert mounts["/work"]["subPath"] == f"work/u/adapters/{job_tag(asked)}"
    stage_input = json.loads(
        next(item["value"] for item in pod["containers"][0]["env"] if item["name"] == "TUNELOOP_STAGE_INPUT")
    )
    assert stage_input["adapter"]["endpoint"] == "http://minio:9000"
    assert stage_input["owner"] == "ModelDeployment team/chat, adapter bot"


GOOD: Obj = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_rslora": True}, ""),
        ({"init_lora_weights": "gaussian"}, ""),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": None}, "lacks r"),
        ({"target_modules": []}, "lacks target_modules"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "whole modules (lm_head)"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"init_lora_weights": "pissa"}, "initialised with pissa"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"layer_replication": [[0, 2]]}, "replicates layers"),
        ({"use_bdlora": {"a": 1}}, "block-diagonal"),
        ({"use_qalora": True}, "QALoRA"),
    ],
)
def test_kinds_that_no_engine_loads(change: Obj, words: str) -> None:
    faults = list(kind_faults(GOOD | change))
    assert bool(faults) == bool(words)
    assert words in "; ".join(faults)


@pytest.mark.parametrize(
    ("name", "revision", "base"),
    [
        ("acme/base", None, "hf://acme/base"),
        ("acme/base", "main", "hf://acme/base"),
        ("acme/base", COMMIT, f"hf://acme/base@{COMMIT}"),
        ("/home/me/base", None, ""),
        ("pvc://models/base", None, "pvc://models/base"),
        (None, None, ""),
    ],
)
def test_the_base_that_a_config_names(name: str | None, revision: str | None, base: str) -> None:
    facts = read_facts(GOOD | {"base_model_name_or_path": name, "revision": revision, "rank_pattern": {"v": 12}})
    assert (facts.base, facts.rank, facts.target_modules) == (base, 12, "q_proj")
