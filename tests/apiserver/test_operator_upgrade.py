"""The operator is replaced by that of a later release: the same end state, nothing doubled, no model restarted."""

import json

from operator_api import Obj
from operator_world import World
from serving_world import with_model

from tuneloop_core.api import ModelDeployment
from tuneloop_operator.policy.digests import digest

FINGERPRINT = "tuneloop.dev/fingerprint"
LATER = "later_operator"
NEW_IMAGES = {"trainer": "localhost/tuneloop/trainer:new", "server": "localhost/tuneloop/server:new"}


def only_revision(world: World, made: Obj) -> Obj:
    (found,) = world.api.list("Deployment", world.namespace)
    assert (found["metadata"]["name"], found["metadata"]["uid"]) == ("chat-r1", made["metadata"]["uid"])
    assert found["spec"] == made["spec"], "its pods are as they were"
    return found


def of_the_first_operators(resource: Obj, made: Obj) -> str:
    """The fingerprint with the defaults in it."""
    spec = ModelDeployment.model_validate(resource).spec
    container = made["spec"]["template"]["spec"]["containers"][0]
    path = next(mount["subPath"] for mount in container["volumeMounts"] if mount["mountPath"] == "/model")
    blocks = {name: getattr(spec, name).to_dict() for name in ("engine", "resources", "pod")}
    return digest({"image": container["image"], "model": path} | blocks)


def test_a_field_more_and_other_images_make_no_new_revision(world: World) -> None:
    """From the first operators to this release, on to a later one, and back as a rollback of the chart does."""
    operator = world.start()
    made = with_model(world, engine={"maxModelLength": 2048})
    operator.end()
    today = made["metadata"]["annotations"][FINGERPRINT]
    old = of_the_first_operators(world.api.must("ModelDeployment", world.namespace, "chat"), made)
    assert old != today
    world.api.patch("Deployment", world.namespace, "chat-r1", {"metadata": {"annotations": {FINGERPRINT: old}}})
    world.settings["images"] = NEW_IMAGES
    for module in ("tuneloop_operator", LATER, "tuneloop_operator"):
        world.api.delete("ConfigMap", world.namespace, "chat-server")
        operator = world.start(module=module)
        operator.wait_look()
        assert only_revision(world, made)["metadata"]["annotations"][FINGERPRINT] == today
        config = json.loads(world.api.must("ConfigMap", world.namespace, "chat-server")["data"]["server-r1.json"])
        assert config["engine"] == {"maxModelLength": 2048}, "the server of r1 knows no field of the later release"
        operator.end()
    assert [item["name"] for item in world.status("chat", "ModelDeployment")["revisions"]] == ["r1"]


def test_what_a_later_release_refuses_is_told_and_runs_on(world: World) -> None:
    operator = world.start()
    made = with_model(world, engine={"maxModelLength": 200_000})
    world.job(retries=9)
    world.wait_job("one-fetch")
    operator.end()
    world.start(module=LATER)
    stalled = world.wait_condition("Stalled", "chat", "InvalidSpec", "ModelDeployment")
    assert (
        "spec.engine.maxModelLength: Input should be less than or equal to 100000, found 200000" in stalled["message"]
    )
    generation = world.api.must("ModelDeployment", world.namespace, "chat")["metadata"]["generation"]
    assert stalled["observedGeneration"] == generation
    assert world.status("chat", "ModelDeployment")["observedGeneration"] == generation
    only_revision(world, made)
    told = world.wait_condition("Stalled", reason="InvalidSpec")
    assert "spec.retries: Input should be less than or equal to 5, found 9" in told["message"]
    assert world.status()["stage"] == "Fetching", "what was known of it stays"
    assert world.api.get("Job", world.namespace, "one-fetch"), "and its Job runs on"
    # A correction heals it.
    world.api.patch("FineTuneJob", world.namespace, "one", {"spec": {"retries": 5}})
    world.succeed_stage("fetch")
    world.wait_job("one-check")
    assert world.condition("Stalled") is None
