"""What an upgrade of the operator must not change: the digests that stand in annotations and statuses.

The table holds fixed hashes. A case that fails means that the next operator makes a new revision of, and so restarts,
every model of that shape: let the digest be as it was (a new field has a default, and no default changes), or accept
the digest of before beside the new one, as ``revisions.is_of`` does.
"""

from typing import Any

import pytest
from pydantic import Field

from tuneloop_core.api import ModelDeployment
from tuneloop_core.api.base import SpecModel
from tuneloop_core.api.engine import EngineLoRA, EngineSettings
from tuneloop_core.api.modeldeployment import AdapterSpec, ServingResources
from tuneloop_core.api.modeldeployment_status import RevisionStatus
from tuneloop_core.api.pod import PodSettings
from tuneloop_core.api.rollout import Canary, Rollout
from tuneloop_operator.build.serving import server_config
from tuneloop_operator.policy import revisions, versions
from tuneloop_operator.policy.adapterfetch import job_tag
from tuneloop_operator.policy.adapters import source_of
from tuneloop_operator.policy.rollout import Version

IMAGE, PATH = "registry/server:1", "models/org/model/abc"
RESTART = "fingerprint of {}: with this change an upgrade of the operator restarts every model with such a spec"

FULL = {
    "resources": {"accelerators": 2},
    "engine": {"maxModelLength": 8192, "lora": {"maxRank": 64}, "extraArgs": ["--max-num-seqs=64"]},
    "pod": {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "resources": {"requests": {"cpu": "4", "memory": "16Gi"}},
    },
}
# What the API server fills in today, written out: a default that changes would change this hash.
FILLED = {
    "resources": {"accelerators": 1, "acceleratorResource": "nvidia.com/gpu"},
    "engine": {
        "type": "vLLM",
        "maxModelLength": 4096,
        "dtype": "Auto",
        "quantization": "None",
        "lora": {"maxRank": 32, "maxActive": 8, "maxCached": 64},
        "extraArgs": [],
    },
}
FINGERPRINTS = {
    "no settings": ({}, "sha256:a1034e1ba60fc49aef084e08a48ff7913d6748ccdd44c20ea93a0d8e6e1746e0"),
    "defaults written out": (FILLED, "sha256:a1034e1ba60fc49aef084e08a48ff7913d6748ccdd44c20ea93a0d8e6e1746e0"),
    "no accelerators": (
        {"resources": {"accelerators": 0}},
        "sha256:5a6ba86e3c31c1717676e27a945efb83dc04174ab31e2331f6679c4f99d57f87",
    ),
    "many settings": (FULL, "sha256:73106b064900888dfc31a2bc5cd3cc107da9479c523a160aacd77ebb1edb9ae8"),
}
BEFORE = "sha256:af913bed40441e783e1bb7e0a9a7081be01997360e1f53f5529a3f5840753801"
"""Of no settings, as operators wrote it that had the defaults in it."""


def deployment(**spec: Any) -> ModelDeployment:
    metadata = {"name": "chat", "namespace": "team"}
    return ModelDeployment.model_validate({"metadata": metadata, "spec": {"model": {"uri": "hf://org/model"}} | spec})


@pytest.mark.parametrize("case", FINGERPRINTS)
def test_fingerprints_are_those_of_every_release(case: str) -> None:
    spec, expected = FINGERPRINTS[case]
    assert revisions.fingerprint(deployment(**spec), IMAGE, PATH) == expected, RESTART.format(case)


def test_a_fingerprint_tells_what_differs() -> None:
    found = {revisions.fingerprint(deployment(**spec), IMAGE, PATH) for spec, _ in FINGERPRINTS.values()}
    assert len(found) == len(FINGERPRINTS) - 1, "the defaults are one case, written out or not"


# ---- a later release: each block has one field more, with a default ----


class LaterLoRA(EngineLoRA):
    spare: int = 3


class LaterEngine(EngineSettings):
    lora: LaterLoRA = LaterLoRA()
    speculative: bool = False


class LaterResources(ServingResources):
    shared_memory: str = "1Gi"


class LaterPod(PodSettings):
    host_aliases: list[str] = Field(default=[])


def later(found: ModelDeployment, **fields: Any) -> ModelDeployment:
    """The deployment as the API server hands it to the later operator."""
    spec = found.spec
    blocks: dict[str, SpecModel] = {
        "engine": LaterEngine.model_validate(spec.engine.to_dict() | fields),
        "resources": LaterResources.model_validate(spec.resources.to_dict()),
        "pod": LaterPod.model_validate(spec.pod.to_dict()),
    }
    return found.model_copy(update={"spec": spec.model_copy(update=blocks)})


@pytest.mark.parametrize("case", FINGERPRINTS)
def test_a_field_of_a_later_release_makes_no_new_revision(case: str) -> None:
    spec, expected = FINGERPRINTS[case]
    upgraded = later(deployment(**spec))
    assert upgraded.spec.engine.to_dict()["speculative"] is False, "the later operator has the field"
    entry = RevisionStatus(name="r1", image=IMAGE, hash=expected)
    assert revisions.choose(upgraded, [entry], {1: {}}, PATH, "registry/server:2") == revisions.Chosen(
        1, IMAGE, expected, False
    )
    assert server_config(upgraded) == server_config(deployment(**spec)), "a pinned server knows no such field"


def test_a_field_of_a_later_release_that_is_set_makes_one() -> None:
    entry = RevisionStatus(name="r1", image=IMAGE, hash=FINGERPRINTS["no settings"][1])
    chosen = revisions.choose(later(deployment(), speculative=True), [entry], {1: {}}, PATH, "registry/server:2")
    assert (chosen.number, chosen.image, chosen.new) == (2, "registry/server:2", True)


# ---- an earlier operator ----


def test_a_revision_of_an_earlier_operator_stays_and_gets_todays_fingerprint() -> None:
    entry, today = RevisionStatus(name="r1", image=IMAGE, hash=BEFORE), FINGERPRINTS["no settings"][1]
    kept = revisions.Chosen(1, IMAGE, today, new=False)
    assert revisions.choose(deployment(), [entry], {1: {}}, PATH, "registry/server:2") == kept
    changed = deployment(engine={"maxModelLength": 2048})
    assert revisions.choose(changed, [entry], {1: {}}, PATH, "registry/server:2").number == 2


# ---- the others: what was rolled back stays so, what is fetched is not fetched twice ----

ADAPTER = {"name": "bot", "from": {"uri": "hf://org/bot"}}
CANARY = {"strategy": "Canary", "canary": {"steps": [5, 50]}}


class LaterCanary(Canary):
    warm_up: str = "0s"


class LaterRollout(Rollout):
    canary: LaterCanary | None = None
    notify: bool = False


class LaterAdapter(AdapterSpec):
    weight: int = 1


def test_other_digests_are_those_of_every_release() -> None:
    adapter, asked = AdapterSpec.model_validate(ADAPTER), deployment(adapters=[ADAPTER], rollout=CANARY)
    version = Version("Adapter", "bot", "abc", "sha256:abc")
    assert (
        versions.spec_digest(asked, version)
        == "sha256:c65d6d8760735fc4fb9081d94695ef0e4c2f0e13c5bb3875d4eea12cee481a31"
    ), "with this change a version that was rolled back is tried again"
    assert job_tag(adapter) == "09c6c4a303", "with this change a fetch that is on its way is begun anew"
    assert source_of(adapter.source) == "uri:bd6d0f88d5ae86f2d5be9842", (
        "with this change every adapter by URI is fetched again"
    )


def test_a_field_of_a_later_release_changes_no_other_digest() -> None:
    asked, version = deployment(adapters=[ADAPTER], rollout=CANARY), Version("Adapter", "bot", "abc", "sha256:abc")
    adapter = LaterAdapter.model_validate(ADAPTER)
    blocks = {"adapters": [adapter], "rollout": LaterRollout.model_validate(CANARY)}
    upgraded = asked.model_copy(update={"spec": asked.spec.model_copy(update=blocks)})
    assert versions.spec_digest(upgraded, version) == versions.spec_digest(asked, version)
    assert job_tag(adapter) == job_tag(AdapterSpec.model_validate(ADAPTER))
