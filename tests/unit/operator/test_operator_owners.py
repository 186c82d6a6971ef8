"""Two owners of one name: the younger is told by the operator exactly where the gateway answers with the older."""

import random
from typing import Any

import pytest
from serving_facts import deployment, facts

from tuneloop_gateway.routes import build_table, parse_deployment
from tuneloop_operator.names import Key
from tuneloop_operator.policy import adapters, owners, reasons
from tuneloop_operator.policy.serving import summarize
from tuneloop_operator.reconcile.cache import Cache
from tuneloop_operator.reconcile.claims import Claims

Obj = dict[str, Any]
DIGEST = "sha256:" + "d" * 64


def claim(
    name: str, *names: str, created: str = "2026-01-01T00:00:00Z", version: int = 1, namespace: str = "team"
) -> Obj:
    metadata = {"name": name, "namespace": namespace, "uid": name, "creationTimestamp": created}
    spec = {"model": {"uri": "hf://o/m"}, "adapters": [{"name": each, "from": {"fineTuneJob": "j"}} for each in names]}
    return {"kind": "ModelDeployment", "metadata": metadata | {"resourceVersion": str(version)}, "spec": spec}


OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"


@pytest.mark.parametrize(
    ("mine", "others", "taken"),
    [
        (claim("a", "x"), [], {}),
        (claim("a", "x"), [claim("b", "y")], {}),
        (claim("a", "x", "y", created=NEW), [claim("b", "x", created=OLD)], {"x": "b"}),
        (claim("a", "x", created=OLD), [claim("b", "x", created=NEW)], {}),
        (claim("b", "x"), [claim("a", "x")], {"x": "a"}),  # of one second: the first by name
        (claim("a", "x"), [claim("b", "x")], {}),
        (claim("x", "y", created=NEW), [claim("b", "x", created=OLD)], {"x": "b"}),  # the base's own name
        (claim("a", "b", created=NEW), [claim("b", created=OLD)], {"b": "b"}),
        (claim("c", "x", created=NEW), [claim("b", "x", created="2026-01-15T00:00:00Z"), claim("a", "x")], {"x": "a"}),
    ],
)
def test_the_older_one_has_the_name(mine: Obj, others: list[Obj], taken: dict[str, str]) -> None:
    assert owners.taken(mine, others) == taken
    assert owners.taken(mine, others[::-1]) == taken


def test_the_gateway_answers_with_the_same_owner() -> None:
    chance = random.Random(20)
    for _ in range(200):
        everyone = [
            claim(name, *chance.sample("bcdxyz".replace(name, ""), k=3), created=chance.choice([OLD, NEW]))
            for name in chance.sample("abcde", k=4)
        ]
        routes = build_table(map(parse_deployment, everyone), [], allow_without_keys=True)["team"].models
        for mine in everyone:
            others = [each for each in everyone if each is not mine]
            name, answers = (
                mine["metadata"]["name"],
                {model: routes[model].deployment.name for model in owners.names_of(mine)},
            )
            assert owners.taken(mine, others) == {model: owner for model, owner in answers.items() if owner != name}


def test_an_adapter_whose_name_is_taken_is_told_and_not_loaded_and_the_rest_is_served() -> None:
    made = deployment(adapters=[{"name": name, "from": {"fineTuneJob": "one"}} for name in ("bot", "other")])
    resolved = [adapters.Resolved(name, DIGEST, "artifacts/x") for name in ("bot", "other")]
    found = owners.without(resolved, {"other": "older"}, made)
    assert [item.wire is not None for item in found] == [True, False]
    status = summarize(made, facts(resolved=found))
    said = {item.type: item for item in status.conditions}
    words = "adapter 'other' belongs to ModelDeployment 'older'; rename it here, or remove it there"
    assert (said["Stalled"].reason, said["Stalled"].message) == (reasons.NAME_TAKEN, words)
    assert [(item.name, item.reason, item.digest) for item in status.adapters] == [
        ("bot", "", DIGEST),
        ("other", reasons.NAME_TAKEN, DIGEST),
    ]
    assert [(item.name, item.ready) for item in status.models] == [("chat", True), ("bot", True), ("other", False)]
    assert parse_deployment(made.to_dict() | {"status": status.to_dict()}).stalled == "", "its requests are held"


def test_a_base_whose_name_is_taken_is_told_and_its_adapters_are_served() -> None:
    made = deployment()
    words = owners.base_words(made, {"chat": "older"})
    status = summarize(made, facts(name_taken=words))
    said = {item.type: item for item in status.conditions}
    assert said["Stalled"].reason == reasons.NAME_TAKEN
    assert said["Stalled"].message.startswith(
        "the name 'chat' belongs to ModelDeployment 'older', which has an adapter"
    )
    assert [(item.name, item.ready) for item in status.models] == [("chat", False), ("bot", True)]
    assert parse_deployment(made.to_dict() | {"status": status.to_dict()}).stalled == "", "its requests are held"
    assert owners.base_words(made, {"bot": "older"}) == ""


def test_a_taken_name_keeps_the_version_that_it_had() -> None:
    before = {"name": "bot", "digest": "sha256:" + "a" * 64, "path": "artifacts/old", "state": "Ready"}
    made = deployment(status={"adapters": [before]})
    (found,) = owners.without([adapters.Resolved("bot", DIGEST, "artifacts/x")], {"bot": "older"}, made)
    assert (found.digest, found.path) == (before["digest"], "artifacts/old"), "nobody asks: nothing is rolled out"


def test_who_looks_again_when_another_changes() -> None:
    cache, younger, older = Cache(), claim("b", "x", created=NEW), claim("a", "x", created=OLD)
    claims, key = Claims(cache), Key("ModelDeployment", "team", "b")
    cache.put(younger)
    assert claims.taken(key, younger) == {}
    cache.put(claim("a", "x", created=OLD, namespace="elsewhere"))
    assert claims.taken(key, younger) == {}
    cache.put(older)
    assert claims.dependents(older) == (key,), "it claims the name too"
    assert claims.taken(key, younger) == {"x": "a"}
    renamed = claim("a", "y", created=OLD, version=2)
    cache.put(renamed)
    assert claims.dependents(renamed) == (key,), "it lost the name to this one"
    assert claims.taken(key, younger) == {}
    assert claims.dependents(renamed) == ()
    cache.put(claim("a", "x", created=OLD, version=3))
    cache.remove(older)
    assert claims.dependents(older) == (key,), "it is gone"
    assert claims.taken(key, younger) == {}
