"""From resources to the routing table, and from a key to what it opens."""

import hashlib
from typing import Any

import pytest
from gateway_world import DIGEST12, HASH, KEY, OTHER_HASH, OTHER_KEY, deployment, endpoint_slice

from tuneloop_gateway import access, auth
from tuneloop_gateway.errors import ApiError
from tuneloop_gateway.routes import Table, build_table, parse_deployment, parse_slice

DIGEST = hashlib.sha256(KEY.encode()).digest()
OTHER = hashlib.sha256(OTHER_KEY.encode()).digest()
NOBODY = hashlib.sha256(b"nobody").digest()


def table(*objects: dict[str, Any], allow: bool = False) -> Table:
    deployments = [parse_deployment(each) for each in objects if "spec" in each]
    slices = [parse_slice(each) for each in objects if "endpoints" in each]
    return build_table(deployments, slices, allow)


def test_base_and_adapters() -> None:
    found = table(deployment("qa", adapters=["a", "b"]), endpoint_slice("qa", ["10.0.0.2", "10.0.0.1"], 8000))
    models = found["team"].models
    assert {name: route.engine_name for name, route in models.items()} == {
        "qa": "qa",
        "a": f"a@{DIGEST12}",
        "b": f"b@{DIGEST12}",
    }
    assert models["a"].addresses == (("10.0.0.1", 8000), ("10.0.0.2", 8000))
    assert models["a"].created == 1767225600


def test_an_adapter_that_left_the_spec_is_no_model_though_servers_still_have_it() -> None:
    raw = deployment("qa", adapters=["a", "b"])
    raw["spec"]["adapters"] = raw["spec"]["adapters"][1:]
    assert [item["name"] for item in raw["status"]["adapters"]] == ["a", "b"]
    assert set(table(raw, endpoint_slice("qa", ["10.0.0.1"], 8000))["team"].models) == {"qa", "b"}


def test_the_older_owner_of_a_name_wins_in_any_order() -> None:
    old = deployment("zz", adapters=["bot"], created="2026-01-01T00:00:00Z")
    new = deployment("aa", adapters=["bot"], created="2026-02-01T00:00:00Z")
    same = deployment("bb", adapters=["bot"], created="2026-01-01T00:00:00Z")
    for objects in ([old, new], [new, old]):
        assert table(*objects)["team"].models["bot"].deployment.name == "zz"
    assert table(old, same)["team"].models["bot"].deployment.name == "bb"


def test_an_adapter_may_not_take_an_older_deployment_s_name() -> None:
    found = table(deployment("qa"), deployment("other", adapters=["qa"], created="2026-02-01T00:00:00Z"))
    assert found["team"].models["qa"].deployment.name == "qa"


def test_namespaces_are_apart() -> None:
    found = table(deployment("qa", "one"), deployment("qa", "two"), endpoint_slice("qa", ["10.0.0.1"], 1, "two"))
    assert found["one"].models["qa"].addresses == ()
    assert found["two"].models["qa"].addresses == (("10.0.0.1", 1),)


@pytest.mark.parametrize(
    ("conditions", "routed"),
    [
        ({"ready": True}, True),
        ({}, True),
        (None, True),
        ({"ready": None}, True),
        ({"ready": False}, False),
        ({"ready": True, "terminating": True}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
    ],
)
def test_ready_endpoints(conditions: dict[str, Any] | None, routed: bool) -> None:
    raw = endpoint_slice("qa", [], 8000) | {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": conditions}]}
    assert bool(parse_slice(raw).addresses) == routed


def test_several_slices_of_one_service() -> None:
    first, second = endpoint_slice("qa", ["10.0.0.1"], 8000), endpoint_slice("qa", ["10.0.0.2", "10.0.0.1"], 8000)
    assert len(table(deployment("qa"), first, second)["team"].models["qa"].addresses) == 2


@pytest.mark.parametrize("left_out", ["ports", "endpoints"])
def test_slices_without_parts(left_out: str) -> None:
    raw = endpoint_slice("qa", ["10.0.0.1"], 8000) | {left_out: None}
    assert parse_slice(raw).addresses == ((("10.0.0.1", 8000),) if left_out == "ports" else ())


def test_a_resource_without_status() -> None:
    raw = deployment("qa", adapters=["bot"])
    del raw["status"]
    found = table(raw)["team"].models
    assert (found["qa"].engine_name, found["bot"].engine_name) == ("qa", "")


def test_served_names_in_status_win() -> None:
    raw = deployment("qa", adapters=["bot"], models=[{"name": "bot", "engineName": "bot@new", "kind": "Adapter"}])
    assert table(raw)["team"].models["bot"].engine_name == "bot@new"


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:zz", "sha256:abcd", "md5:" + "0" * 64, "0" * 64])
def test_bad_hashes_are_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"64 hexadecimal|non-hexadecimal") as caught:
        auth.digest_of_hash(text)
    assert not text.removeprefix("sha256:") or text not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "digest"),
    [
        (f"Bearer {KEY}".encode(), DIGEST),
        (f"bearer   {KEY} ".encode(), DIGEST),
        (b"Bearer ", None),
        (b"Basic abc", None),
        (b"", None),
        (None, None),
    ],
)
def test_the_key_of_a_header(header: bytes | None, digest: bytes | None) -> None:
    assert auth.digest_of_header(header) == digest


MIXED = (
    deployment("qa", adapters=["bot"], access={"keys": [{"name": "all", "hash": HASH}]}),
    deployment("b2", adapters=["x"], access={"keys": [{"name": "one", "hash": OTHER_HASH, "models": ["x"]}]}),
    deployment("nokey", access=None),
    deployment("empty", access={"keys": []}),
)


@pytest.mark.parametrize(
    ("digest", "allow", "opens", "refusal"),
    [
        (DIGEST, False, ["bot", "qa"], (403, b"model_not_allowed")),
        (OTHER, False, ["x"], (403, b"model_not_allowed")),
        (DIGEST, True, ["bot", "empty", "nokey", "qa"], (403, b"model_not_allowed")),
        (None, True, ["empty", "nokey"], (401, b"missing_api_key")),
        (NOBODY, True, ["empty", "nokey"], (401, b"invalid_api_key")),
    ],
    ids=["a key", "a key for one model", "some ask for none", "no key", "an unknown key"],
)
def test_what_a_key_opens(digest: bytes | None, allow: bool, opens: list[str], refusal: tuple[int, bytes]) -> None:
    namespace = access.admit(table(*MIXED, allow=allow)["team"], "team", digest, allow)
    assert [route.model for route in access.usable(namespace, digest, allow)] == opens
    for model in ("qa", "bot", "b2", "x", "nokey", "empty", "absent"):
        if model in opens:
            assert access.find(namespace, model, digest, allow).model == model
        else:
            with pytest.raises(ApiError) as caught:
                access.find(namespace, model, digest, allow)
            status, code = (404, b"model_not_found") if model == "absent" else refusal
            assert caught.value.reply.status == status
            assert code in caught.value.reply.body
            assert status == 401 or all(name.encode() in caught.value.reply.body for name in opens)


@pytest.mark.parametrize(
    ("namespace", "digest", "allow", "status", "code"),
    [
        ("team", None, False, 401, b"missing_api_key"),
        ("team", NOBODY, False, 401, b"invalid_api_key"),
        ("absent", DIGEST, False, 401, b"invalid_api_key"),
        ("absent", None, False, 401, b"missing_api_key"),
        ("absent", None, True, 404, b"namespace_not_found"),
    ],
)
def test_who_is_refused(namespace: str, digest: bytes | None, allow: bool, status: int, code: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        access.admit(table(*MIXED, allow=allow).get(namespace), namespace, digest, allow)
    assert caught.value.reply.status == status
    assert code in caught.value.reply.body
