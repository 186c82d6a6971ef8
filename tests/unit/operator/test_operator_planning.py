"""The plan stage in the operator: Feasible, what a refusal stops, usage beside the plan, nodes and metrics."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from operator_world import CHECKED, FETCHED, TRAINED

from tuneloop_core.api import FineTuneJob, FineTuneJobStatus, UsageStatus
from tuneloop_core.plan.accelerators import NodeGroup
from tuneloop_core.plan.job import Facts
from tuneloop_core.settings import ImageSettings, Settings
from tuneloop_core.stages import FetchResult, Progress, Stage
from tuneloop_operator import metrics
from tuneloop_operator.build.sizes import train_cores, train_memory_limit, train_sizes
from tuneloop_operator.build.stages import build_stage
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.errors import ForbiddenError
from tuneloop_operator.names import Key
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.actions import CreateStage
from tuneloop_operator.policy.finetune import Decision, JobFacts, decide
from tuneloop_operator.policy.verdicts import StageFacts
from tuneloop_operator.reconcile.ledger import MOST_JOBS, Ledger
from tuneloop_operator.reconcile.nodes import Nodes

Obj = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
GIB = 2**30
SHAPE = {
    "architecture": "llama", "hiddenSize": 4096, "intermediateSize": 14336, "layers": 32, "heads": 32,
    "keyValueHeads": 8, "headSize": 128, "vocabulary": 128256,
}  # fmt: skip
RESULTS = {"fetch": FETCHED | {"shape": SHAPE}, "check": CHECKED, "train": TRAINED}


def job(status: FineTuneJobStatus | None = None, **spec: Any) -> FineTuneJob:
    body = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "hf://datasets/o/d"}} | spec
    metadata = {"name": "one", "namespace": "team", "uid": "owner", "generation": 1}
    made = FineTuneJob.model_validate({"metadata": metadata, "spec": body})
    return made.model_copy(update={"status": status or FineTuneJobStatus()})


def stage_facts(stage: str, running: bool = False) -> StageFacts:
    owner = {"name": f"one-{stage}", "uid": "j", "labels": {}, "ownerReferences": [{"uid": "owner"}]}
    conditions = [] if running else [{"type": "Complete", "status": "True"}]
    k8s_job = {"metadata": owner, "spec": {"backoffLimit": 3}, "status": {"conditions": conditions}}
    said = json.dumps({"stage": stage, "outcome": "Succeeded", "result": RESULTS[stage]})
    times = {"startedAt": "2026-11-23T11:00:00Z", "finishedAt": "2026-11-23T11:10:00Z"}
    state = {"running": {"startedAt": "2026-11-23T11:58:00Z"}} if running else {"terminated": {"message": said} | times}
    status = {"phase": "Running" if running else "Succeeded", "containerStatuses": [{"name": "main", "state": state}]}
    pod = {"metadata": {"name": "p", "labels": {}}, "spec": {"containers": [{"name": "main"}]}, "status": status}
    return StageFacts(k8s_job, (pod,))


def planned(planning: Facts | None = None, **spec: Any) -> Decision:
    """The look at which fetch and check are done."""
    stages = {Stage.FETCH: stage_facts("fetch"), Stage.CHECK: stage_facts("check")}
    return decide(job(**spec), JobFacts(NOW, stages, planning=planning or Facts()))


def condition(decision: Decision, kind: str) -> tuple[str, str] | None:
    return next(((item.status, item.reason) for item in decision.status.conditions if item.type == kind), None)


H100 = {"pod": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}}


def test_a_job_that_fits_is_feasible_and_trains() -> None:
    decision = planned(**H100)
    assert condition(decision, "Feasible") == ("True", reasons.FITS)
    assert decision.actions == (CreateStage(Stage.TRAIN),)
    plan = decision.status.plan
    assert plan is not None
    assert plan.memory is not None
    assert (plan.accelerator, plan.steps, plan.total_parameters) == ("H100", 12, 8_030_261_248)
    assert sum(plan.memory.to_dict().values()) == plan.memory_bytes < plan.memory_limit_bytes
    assert plan.price > 0
    assert plan.estimated_duration


def test_a_job_that_does_not_fit_makes_no_pod_and_says_what_would() -> None:
    decision = planned(Facts(memory_limit=8 * GIB), resources={"accelerators": 0})
    assert decision.actions == ()
    assert condition(decision, "Feasible") == ("False", reasons.DOES_NOT_FIT)
    assert condition(decision, "Stalled") == ("True", reasons.DOES_NOT_FIT)
    assert condition(decision, "Failed") is None
    assert [(stage.name, stage.state) for stage in decision.status.stages][2:4] == [
        ("plan", "Pending"),
        ("train", "Pending"),
    ]
    assert "Would fit: pod.resources.limits.memory: " in decision.status.stages[2].message
    assert decision.look_again


def test_a_refused_job_goes_on_when_the_cluster_gets_what_it_needs() -> None:
    small = planned(Facts(groups=(NodeGroup("Tesla-T4", 15360, {}),)))
    assert condition(small, "Feasible") == ("False", reasons.DOES_NOT_FIT)
    large = Facts(groups=(NodeGroup("NVIDIA-H200", 143771, {}),))
    assert decide(job(small.status), JobFacts(NOW, planning=large)).actions == (CreateStage(Stage.TRAIN),)


def test_without_a_limit_or_sizes_a_job_is_feasible_and_says_that_nothing_is_known() -> None:
    decision = planned(resources={"accelerators": 0})
    assert condition(decision, "Feasible") == ("True", reasons.MEMORY_UNKNOWN)


def test_usage_stands_beside_the_plan() -> None:
    stages = {Stage.TRAIN: stage_facts("train")}
    usage = decide(job(planned(**H100).status, **H100), JobFacts(NOW, stages)).status.usage
    assert usage is not None
    assert (usage.train_seconds, usage.training_seconds, usage.accelerator_seconds) == (600, 100, 600)
    assert usage.peak_memory_bytes == 10**9
    assert usage.price == pytest.approx(600 / 3600 * 6.88, abs=1e-3)


def test_usage_grows_while_training_runs() -> None:
    stages, progress = {Stage.TRAIN: stage_facts("train", running=True)}, Progress(phase="Training", step=1)
    usage = decide(job(planned(**H100).status, **H100), JobFacts(NOW, stages, progress)).status.usage
    assert usage is not None
    assert (usage.train_seconds, usage.accelerator_seconds) == (120, 120)


@pytest.mark.parametrize(
    ("spec", "limit", "cores"),
    [
        ({"resources": {"accelerators": 0}}, 8 * GIB, 1.0),  # our defaults
        (
            {"resources": {"accelerators": 0}, "pod": {"resources": {"limits": {"memory": "3Gi", "cpu": "2"}}}},
            3 * GIB,
            2.0,
        ),
        ({"resources": {"accelerators": 0}, "pod": {"resources": {"requests": {"memory": "20Gi"}}}}, 20 * GIB, 1.0),
    ],
)
def test_the_limits_that_the_train_pod_gets(spec: Obj, limit: int, cores: float) -> None:
    assert train_memory_limit(job(**spec).spec) == limit
    assert train_cores(job(**spec).spec) == cores


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"recompute": True}, {"recompute": True, "shard": False, "packTokens": 0}),  # it halves packs by itself
        ({"recompute": False}, {"recompute": False}),
        ({"shards": 8, "pack_tokens": 2048}, {"shard": True, "packTokens": 2048}),  # there it does not
    ],
)
def test_the_trainer_is_told_what_was_planned(fields: Obj, told: Obj) -> None:
    status = planned(**H100).status
    assert status.plan is not None
    status = status.model_copy(update={"plan": status.plan.model_copy(update=fields)})
    fetched = FetchResult.model_validate(FETCHED)
    settings = Settings(images=ImageSettings(trainer="t", server="s"))
    built = build_stage(Stage.TRAIN, job(status, **H100), fetched, settings, "1")
    environment = built["spec"]["template"]["spec"]["containers"][0]["env"]
    inputs = next(item["value"] for item in environment if item["name"] == "TUNELOOP_STAGE_INPUT")
    found = json.loads(inputs)
    assert {key: found[key] for key in told} == told


# ---- nodes -----------------------------------------------------------------------------------------------------------


class NodeList(Client):
    """The part of a client that reads nodes."""

    def __init__(self, forbidden: bool) -> None:
        self.forbidden, self.reads = forbidden, 0

    async def list(self, *_: Any, **__: Any) -> list[Obj]:
        self.reads += 1
        if self.forbidden:
            raise ForbiddenError(403, "Forbidden", "nodes is forbidden")
        labels = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034", "pool": "a"}
        return [{"metadata": {"name": "n", "labels": labels}}]


async def test_nodes_are_read_once_a_minute_and_only_where_allowed() -> None:
    client = NodeList(forbidden=False)
    nodes = Nodes(client, allowed=True)
    for _ in range(3):
        groups = await nodes.groups()
        assert groups is not None
        assert [(group.product, group.memory_mib, group.labels["pool"]) for group in groups] == [
            ("NVIDIA-L4", 23034, "a")
        ]
    assert client.reads == 1
    assert await Nodes(client, allowed=False).groups() is None
    assert client.reads == 1


async def test_a_role_without_nodes_means_the_table() -> None:
    client = NodeList(forbidden=True)
    nodes = Nodes(client, allowed=True)
    assert [await nodes.groups(), await nodes.groups()] == [None, None]
    assert client.reads == 1


# ---- metrics ---------------------------------------------------------------------------------------------------------


def sample(series: str, /, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(series, labels)


def test_what_a_job_takes_is_counted_once_and_forgotten_with_it() -> None:
    ledger, key = Ledger(), Key("FineTuneJob", "metered", "one")
    before = planned(**H100).status
    for seconds in (60.0, 100.0, 100.0):
        usage = UsageStatus(accelerator_seconds=seconds, price=seconds / 100)
        after = before.model_copy(update={"usage": usage})
        ledger.note(key, job(before), after)
        before = after
    assert sample("tuneloop_accelerator_seconds_total", namespace="metered", queue="") == 100
    assert sample("tuneloop_train_price_total", namespace="metered", queue="", currency="USD") == pytest.approx(1.0)
    series = {"namespace": "metered", "name": "one", "queue": ""}
    assert sample("tuneloop_finetunejob_accelerator_seconds", **series) == 100
    ledger.forget(key)
    assert sample("tuneloop_finetunejob_accelerator_seconds", **series) is None


def test_series_of_single_jobs_are_bounded() -> None:
    ledger, before, after = Ledger(), job(), FineTuneJobStatus(usage=UsageStatus(accelerator_seconds=1))
    keys = [Key("FineTuneJob", "many", f"j{number}") for number in range(MOST_JOBS + 5)]
    for key in keys:
        ledger.note(key, before, after)
    (series,) = metrics.JOB_PRICE.collect()
    shown = [found for found in series.samples if found.labels["namespace"] == "many"]
    assert len(shown) == MOST_JOBS
    assert sample("tuneloop_accelerator_seconds_total", namespace="many", queue="") == MOST_JOBS + 5
    for key in keys:
        ledger.forget(key)


@pytest.mark.parametrize(
    ("host_gib", "limits", "limit"),
    [
        (0, {}, "128Gi"),  # no plan: 64 GiB for each of two
        (40, {}, "128Gi"),
        (140, {}, "161Gi"),  # the plan and its margin
        (140, {"memory": "100Gi"}, "100Gi"),
    ],
)
def test_the_memory_limit_beside_accelerators_follows_the_plan(host_gib: int, limits: Obj, limit: str) -> None:
    spec = job(resources={"accelerators": 2}, pod={"resources": {"limits": limits}}).spec
    sizes = train_sizes(spec, host_gib * GIB)
    assert (sizes["limits"]["memory"], sizes["requests"]["memory"]) == (limit, "32Gi")
