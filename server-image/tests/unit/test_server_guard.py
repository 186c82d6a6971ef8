"""The door: tokens, roles, paths; and that the key file is read anew."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from server_fixtures import AUDIENCE, GATEWAY, ISSUER, OPERATOR, STRANGER, Signer, guard_config, write_json
from starlette.types import Message

from tuneloop_core.servertokens import SERVER_AUDIENCE, token_request
from tuneloop_server.guard import TABLE, Guard, Role, Verdict, bearer, judge
from tuneloop_server.tokens import KeyFile

RSA = Signer("rsa-1")
EC = Signer("ec-1", "ES256")
OTHER = Signer("rsa-1")  # the same id, another key

INFERENCE = frozenset({Role.INFERENCE})
ADMIN = frozenset({Role.ADMIN})

PATHS = ["/v1/models", "/v1/chat/completions", "/v1/completions", "/metrics", "/tuneloop/status", "/tuneloop/adapters"]


@pytest.mark.parametrize(
    ("method", "path", "nobody", "stranger", "inference", "admin"),
    [
        ("GET", "/health", 200, 200, 200, 200),
        ("POST", "/health", 404, 404, 404, 404),
        ("GET", "/v1/models", 401, 403, 200, 403),
        ("POST", "/v1/chat/completions", 401, 403, 200, 403),
        ("POST", "/v1/completions", 401, 403, 200, 403),
        ("GET", "/metrics", 401, 403, 200, 200),
        ("GET", "/tuneloop/status", 401, 403, 403, 200),
        ("POST", "/tuneloop/adapters", 401, 403, 403, 200),
        ("GET", "/v1/chat/completions", 404, 404, 404, 404),
        ("OPTIONS", "/v1/chat/completions", 404, 404, 404, 404),
        ("HEAD", "/v1/models", 404, 404, 404, 404),
        ("GET", "/metrics/", 404, 404, 404, 404),
        ("GET", "//v1/models", 404, 404, 404, 404),
        ("POST", "/v1/load_lora_adapter", 404, 404, 404, 404),
        ("POST", "/invocations", 404, 404, 404, 404),
        ("GET", "/docs", 404, 404, 404, 404),
        ("GET", "/", 404, 404, 404, 404),
    ],
)
def test_policy(method: str, path: str, nobody: int, stranger: int, inference: int, admin: int) -> None:
    callers = [None, frozenset[Role](), INFERENCE, ADMIN]
    assert [judge(method, path, roles).value for roles in callers] == [nobody, stranger, inference, admin]


def test_both_roles_open_both() -> None:
    assert all(judge(method, path, INFERENCE | ADMIN) is Verdict.PASS for method, path in TABLE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "guard.json"
    write_json(path, guard_config(RSA, EC))
    return path


async def ask(
    file: Path | KeyFile, path: str, headers: list[tuple[bytes, bytes]], method: str = "GET"
) -> list[Message]:
    """Send one request through a guard in front of an application that answers 200."""
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"behind the guard"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the guard must not read the body")

    keys = file if isinstance(file, KeyFile) else KeyFile(file)
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await Guard(app, keys)(scope, receive, send)
    return sent


def authorization(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


@pytest.mark.parametrize("signer", [RSA, EC], ids=["RS256", "ES256"])
async def test_a_good_token_passes(file: Path, signer: Signer) -> None:
    sent = await ask(file, "/v1/models", authorization(signer.token(GATEWAY)))
    assert (sent[0]["status"], sent[1]["body"]) == (200, b"behind the guard")


async def test_what_gateway_and_operator_ask_for_passes_also_where_the_guard_is_older(file: Path) -> None:
    asked = authorization(RSA.token(GATEWAY, aud=token_request("team-a")["spec"]["audiences"]))
    assert (await ask(file, "/v1/models", asked))[0]["status"] == 200
    write_json(file, guard_config(RSA).model_copy(update={"audience": SERVER_AUDIENCE}))
    assert (await ask(file, "/v1/models", asked))[0]["status"] == 200


async def test_admin_passes_where_inference_does_not(file: Path) -> None:
    assert (await ask(file, "/tuneloop/status", authorization(RSA.token(OPERATOR))))[0]["status"] == 200
    assert (await ask(file, "/tuneloop/status", authorization(RSA.token(GATEWAY))))[0]["status"] == 403


def bad_tokens() -> Iterator[Any]:
    now = int(time.time())
    yield pytest.param(RSA.token(GATEWAY, exp=now - 60), id="expired")
    yield pytest.param(RSA.token(GATEWAY, nbf=now + 600), id="not yet valid")
    yield pytest.param(RSA.token(GATEWAY, exp=None), id="never expires")
    yield pytest.param(RSA.token(GATEWAY, aud=["https://kubernetes.default.svc"]), id="another audience")
    yield pytest.param(RSA.token(GATEWAY, aud=token_request("team-b")["spec"]["audiences"]), id="another namespace")
    yield pytest.param(RSA.token(GATEWAY, aud=[SERVER_AUDIENCE]), id="every namespace")
    yield pytest.param(RSA.token(GATEWAY, aud=None), id="no audience")
    yield pytest.param(RSA.token(GATEWAY, iss="https://elsewhere"), id="another issuer")
    yield pytest.param(RSA.token(GATEWAY, iss=None), id="no issuer")
    yield pytest.param(RSA.token(GATEWAY, sub=None), id="no subject")
    yield pytest.param(OTHER.token(GATEWAY), id="another key under the same id")
    yield pytest.param(Signer("rsa-2").token(GATEWAY), id="unknown key")
    yield pytest.param(_unsigned(), id="algorithm none")
    yield pytest.param(_hmac_with_public_key(), id="HMAC with the public key")
    yield pytest.param("a.b.c", id="no token at all")
    yield pytest.param("x" * 100_000, id="far too long")
    yield pytest.param("", id="empty")


def _claims() -> dict[str, Any]:
    return {"iss": ISSUER, "aud": AUDIENCE, "sub": GATEWAY, "exp": int(time.time()) + 60}


def _unsigned() -> str:
    return jwt.encode(_claims(), key=None, algorithm="none", headers={"kid": "rsa-1"})


def _hmac_with_public_key() -> str:
    """The classic confusion: the public key, which everybody has, taken for a shared secret."""
    public = RSA.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, body = (_segment(part) for part in ({"alg": "HS256", "typ": "JWT", "kid": "rsa-1"}, _claims()))
    signature = hmac.digest(public, f"{head}.{body}".encode(), "sha256")
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _segment(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("token", list(bad_tokens()))
async def test_a_bad_token_is_refused(file: Path, token: str) -> None:
    sent = await ask(file, "/v1/models", authorization(token))
    assert sent[0]["status"] == 401
    assert (b"www-authenticate", b"Bearer") in sent[0]["headers"]
    error = json.loads(sent[1]["body"])["error"]
    assert (error["type"], error["code"]) == ("authentication_error", 401)
    assert len(token) < 5 or token.encode() not in sent[1]["body"]


async def test_a_stranger_with_a_good_token_is_refused(file: Path) -> None:
    assert (await ask(file, "/v1/models", authorization(RSA.token(STRANGER))))[0]["status"] == 403


@pytest.mark.parametrize("path", PATHS)
async def test_nothing_without_a_token(file: Path, path: str) -> None:
    method = "POST" if "completions" in path or path.endswith("adapters") else "GET"
    assert (await ask(file, path, [], method))[0]["status"] == 401


async def test_the_file_is_read_anew_and_a_broken_one_changes_nothing(file: Path) -> None:
    keys, new = KeyFile(file), Signer("rsa-9")
    old_token, new_token = authorization(RSA.token(GATEWAY)), authorization(new.token(GATEWAY))
    assert (await ask(keys, "/v1/models", new_token))[0]["status"] == 401
    write_json(file, guard_config(new))
    assert (await ask(keys, "/v1/models", new_token))[0]["status"] == 200
    assert (await ask(keys, "/v1/models", old_token))[0]["status"] == 401
    await asyncio.to_thread(file.write_text, "{ broken")
    assert (await ask(keys, "/v1/models", new_token))[0]["status"] == 200
    await asyncio.to_thread(file.unlink)
    assert (await ask(keys, "/v1/models", new_token))[0]["status"] == 200


async def test_a_file_of_a_later_operator_opens_the_same(file: Path) -> None:
    keys, new = KeyFile(file), Signer("rsa-9")
    content = json.loads(guard_config(new).model_dump_json(by_alias=True))
    await asyncio.to_thread(file.write_text, json.dumps(content | {"metrics": ["system:serviceaccount:x:y"]}))
    assert (await ask(keys, "/v1/models", authorization(new.token(GATEWAY))))[0]["status"] == 200


async def test_a_symlink_swap_is_a_change(tmp_path: Path) -> None:
    """The kubelet writes ..data_1/guard.json and turns a link."""
    for number, signer in enumerate((RSA, EC)):
        (tmp_path / f"v{number}").mkdir()
        write_json(tmp_path / f"v{number}/guard.json", guard_config(signer))
    link = tmp_path / "data"
    link.symlink_to("v0")
    keys = KeyFile(link / "guard.json")
    assert (await ask(keys, "/v1/models", authorization(EC.token(GATEWAY))))[0]["status"] == 401
    (tmp_path / "new").symlink_to("v1")
    (tmp_path / "new").replace(link)
    assert (await ask(keys, "/v1/models", authorization(EC.token(GATEWAY))))[0]["status"] == 200


async def test_without_a_key_file_only_health_is_open(tmp_path: Path) -> None:
    absent = tmp_path / "guard.json"
    assert (await ask(absent, "/health", []))[0]["status"] == 200
    assert (await ask(absent, "/v1/models", authorization(RSA.token(GATEWAY))))[0]["status"] == 401


async def test_websockets_are_closed(file: Path) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": authorization(RSA.token(GATEWAY))}
    await Guard(lambda *_: pytest.fail("reached the application"), KeyFile(file))(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([], None),
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer abc ")], "abc"),
        ([(b"authorization", b"Basic abc")], None),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], None),
        ([(b"x-authorization", b"Bearer abc")], None),
    ],
)
def test_bearer(headers: list[tuple[bytes, bytes]], token: str | None) -> None:
    assert bearer({"headers": headers}) == token
