"""Long-lived children that somebody edits or deletes are put right; those that nobody touches cost no write."""

from collections.abc import Callable
from typing import Any

from operator_api import Obj, wait_for
from operator_world import World
from serving_world import with_model

CHILDREN = (
    ("Service", "chat-server"),
    ("PodDisruptionBudget", "chat-server"),
    ("ConfigMap", "chat-server"),
    ("NetworkPolicy", "tuneloop-server"),
    ("NetworkPolicy", "tuneloop-stages"),
    ("NetworkPolicy", "tuneloop-train"),
)


def spec_of(world: World, kind: str, name: str) -> Any:
    found = world.api.get(kind, world.namespace, name)
    return found and (found.get("spec") or found["data"])


def edit_selector(world: World) -> None:
    world.api.patch("Service", world.namespace, "chat-server", {"spec": {"selector": {"app": "other"}}})


def edit_labels(world: World) -> None:
    """Out of sight of the watch, which selects by this label."""
    labels = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "kubectl"}}}
    world.api.patch("Service", world.namespace, "chat-server", labels)


def edit_budget(world: World) -> None:
    world.api.patch("PodDisruptionBudget", world.namespace, "chat-server", {"spec": {"maxUnavailable": "100%"}})


def open_policy(world: World) -> None:
    """A rule more that lets everybody in."""
    found = world.api.must("NetworkPolicy", world.namespace, "tuneloop-server")["spec"]["ingress"]
    world.api.patch("NetworkPolicy", world.namespace, "tuneloop-server", {"spec": {"ingress": [*found, {}]}})


def narrow_policy(world: World) -> None:
    """A selector that no pod has."""
    selector = {"spec": {"podSelector": {"matchLabels": {"no": "pod"}}}}
    world.api.patch("NetworkPolicy", world.namespace, "tuneloop-stages", selector)


EDITS: list[tuple[tuple[str, str], Callable[[World], None]]] = [
    (CHILDREN[0], edit_selector),
    (CHILDREN[0], edit_labels),
    (CHILDREN[1], edit_budget),
    (CHILDREN[3], open_policy),
    (CHILDREN[4], narrow_policy),
]


def version(world: World, child: tuple[str, str]) -> int:
    return int(world.api.must(child[0], world.namespace, child[1])["metadata"]["resourceVersion"])


def is_right(world: World, child: tuple[str, str], wanted: dict[tuple[str, str], Obj]) -> bool:
    found = world.api.must(child[0], world.namespace, child[1])
    labelled = found["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "tuneloop"
    return labelled and found.get("spec") == wanted[child]


def test_what_somebody_edits_or_deletes_is_put_right_and_nothing_else_is_written(world: World) -> None:
    world.settings["resyncSeconds"] = 1.0
    operator = world.start()
    with_model(world)
    operator.end()
    wanted = {child: wait_for(f"{child}", lambda child=child: spec_of(world, *child)) for child in CHILDREN}
    before = {child: version(world, child) for child in CHILDREN}
    operator = world.start()
    wait_for("several resyncs", lambda: operator.metric("tuneloop_api_reads_total", kind="PodDisruptionBudget") > 2)
    for kind in ("Service", "PodDisruptionBudget", "ConfigMap", "NetworkPolicy"):
        assert operator.metric("tuneloop_api_writes_total", kind=kind) == 0, kind
    assert {child: version(world, child) for child in CHILDREN} == before
    for child, edit in EDITS:
        edited = version(world, child)
        edit(world)
        wait_for(
            f"{child} to be as it was after {edit.__name__}",
            lambda child=child, edited=edited: version(world, child) > edited + 1 and is_right(world, child, wanted),
            show=lambda child=child: world.api.get(child[0], world.namespace, child[1]),
        )
    for child in CHILDREN:
        world.api.delete(child[0], world.namespace, child[1])
    for child in CHILDREN:
        wait_for(f"{child} to be made again", lambda child=child: world.api.get(child[0], world.namespace, child[1]))


def test_a_deleted_service_comes_back_without_waiting_for_the_resync(world: World) -> None:
    world.settings["resyncSeconds"] = 3600.0
    world.start()
    with_model(world)
    wait_for("the Service", lambda: world.api.get("Service", world.namespace, "chat-server"))
    world.api.delete("Service", world.namespace, "chat-server")
    wait_for("the Service to be made again", lambda: world.api.get("Service", world.namespace, "chat-server"))
    edit_selector(world)
    wait_for(
        "the selector to be put right",
        lambda: "other" not in spec_of(world, "Service", "chat-server")["selector"].values(),
    )
