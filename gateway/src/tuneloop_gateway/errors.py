"""Every answer that the gateway gives on its own behalf, in OpenAI's shape.

One function an error, so that the words live in one place: what was found, what would be right, what to do next.
Never echoes a body, a key, or anything else of a request but the names that the client may know.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

MAX_LISTED = 20
MAX_NAME = 120
PATHS = ("models", "chat/completions", "completions", "embeddings", "classify", "score", "feedback")


@dataclass(frozen=True)
class Reply:
    """A whole HTTP answer."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())
    content_type: bytes = b"application/json"
    reason: str = ""  # a word for logs and metrics


class ApiError(Exception):
    """An error that is answered to the client as it is."""

    def __init__(self, reply: Reply, logged: bool = False) -> None:
        super().__init__(reply.reason)
        self.reply = reply
        self.logged = logged  # the access log has its line already


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """The body of an OpenAI error."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _error(status: int, kind: str, code: str, message: str, **more: Any) -> Reply:
    param = more.pop("param", None)
    return Reply(status, error_body(message, kind, code, param), reason=code, **more)


def _shown(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[:MAX_NAME] + "..."


def _listed(names: Iterable[str]) -> str:
    known = sorted(names)
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return ", ".join(known[:MAX_LISTED]) + more if known else "none"


def broken_json(detail: str) -> Reply:
    """400: the body does not parse."""
    text = (
        f"The body is not valid JSON: {detail}. Send one JSON object with 'model' and 'messages', 'prompt' or 'input'."
    )
    return _error(400, "invalid_request_error", "invalid_json", text)


def not_an_object(found: str) -> Reply:
    """400: JSON, but not an object."""
    return _error(400, "invalid_request_error", "invalid_json", f"The body must be a JSON object, found {found}.")


def bad_field(param: str, message: str) -> Reply:
    """400: one field is wrong."""
    return _error(400, "invalid_request_error", "invalid_value", message, param=param)


def missing_model(models: Iterable[str]) -> Reply:
    """400: no ``model``."""
    text = f"'model' is missing or not a non-empty string. Models you may use here: {_listed(models)}."
    return _error(400, "invalid_request_error", "missing_model", text, param="model")


def bad_request(message: str) -> Reply:
    """400: not HTTP as we speak it."""
    return _error(400, "invalid_request_error", "bad_request", message)


def no_key() -> Reply:
    """401: no key was sent."""
    text = "No API key was sent. Send 'Authorization: Bearer <key>' with a key of this namespace's ModelDeployment."
    return _error(401, "invalid_request_error", "missing_api_key", text, headers=((b"www-authenticate", b"Bearer"),))


def wrong_key() -> Reply:
    """401: a key that opens nothing here."""
    text = "The API key opens no model of this namespace. Check the key and the namespace in the base URL."
    return _error(401, "invalid_request_error", "invalid_api_key", text, headers=((b"www-authenticate", b"Bearer"),))


def unknown_path() -> Reply:
    """404: no such path."""
    paths = ", ".join(f"/NAMESPACE/v1/{name}" for name in PATHS)
    return _error(404, "invalid_request_error", "not_found", f"No such path. This gateway serves {paths}.")


def unknown_namespace(namespace: str) -> Reply:
    """404: nothing is deployed in the namespace (told only where no key is asked for)."""
    text = f"No ModelDeployment is served in namespace '{_shown(namespace)}'. Check the base URL."
    return _error(404, "invalid_request_error", "namespace_not_found", text)


def unknown_model(model: str, models: Iterable[str]) -> Reply:
    """404: no such model; lists what the key may use."""
    text = f"The model '{_shown(model)}' does not exist here. Models you may use here: {_listed(models)}."
    return _error(404, "invalid_request_error", "model_not_found", text, param="model")


def closed_model(model: str, models: Iterable[str]) -> Reply:
    """403: the model is there, and the key does not open it."""
    text = (
        f"This API key does not open the model '{_shown(model)}'. Models it opens here: {_listed(models)}. Ask for one "
        "of them, or for the model's name to be added to the key in spec.access.keys."
    )
    return _error(403, "invalid_request_error", "model_not_allowed", text, param="model")


def unknown_response() -> Reply:
    """404: feedback on an answer that no version of now gave."""
    text = (
        "No model that you may use here gave an answer of this id, or the version that gave it no longer serves. Send "
        "the 'id' of an answer of this gateway as it was, soon after it came."
    )
    return _error(404, "invalid_request_error", "response_not_found", text, param="id")


def wrong_method(allowed: bytes) -> Reply:
    """405."""
    text = f"This path answers {allowed.decode()} only."
    return _error(405, "invalid_request_error", "method_not_allowed", text, headers=((b"allow", allowed),))


def timed_out_reading() -> Reply:
    """408: the client was too slow."""
    return _error(408, "invalid_request_error", "request_timeout", "The request did not arrive in time. Send it again.")


def body_too_large(limit: int) -> Reply:
    """413."""
    text = f"The body is larger than {limit} bytes, the most this gateway takes. Send fewer or shorter messages."
    return _error(413, "invalid_request_error", "body_too_large", text)


def url_too_long(limit: int) -> Reply:
    """414."""
    return _error(414, "invalid_request_error", "url_too_long", f"The URL is longer than {limit} bytes.")


def head_too_large(limit: int) -> Reply:
    """431."""
    return _error(431, "invalid_request_error", "headers_too_large", f"The headers are larger than {limit} bytes.")


def rate_limited(key: str, what: str, limit: int, retry_after: int) -> Reply:
    """429: ``what`` (requests or tokens) of a key are used up; OpenAI's clients wait and ask again by themselves."""
    text = f"Key '{key}' has used up its {limit} {what} per minute. Try again in {retry_after} s."
    headers = ((b"retry-after", b"%d" % retry_after),)
    return _error(429, what, "rate_limit_exceeded", text, headers=headers)


def upstream_failed(message: str, identity: bytes = b"") -> Reply:
    """502: a server pod did not answer as it should; ``identity`` is the request's id, as the logs have it."""
    return _error(502, "server_error", "upstream_failed", message + _advice(identity))


def _advice(identity: bytes) -> str:
    return f" Try again; if it lasts, name request {identity.decode()} to the operators." if identity else ""


def unavailable(message: str, retry_after: int, code: str = "model_not_ready") -> Reply:
    """503 with Retry-After."""
    return _error(503, "server_error", code, message, headers=((b"retry-after", b"%d" % retry_after),))


def _found(model: str, busy: bool) -> str:
    return f"All replicas of '{_shown(model)}' are busy" if busy else f"No replica of '{_shown(model)}' is ready"


def queue_full(model: str, waiting: int, retry_after: int, busy: bool = False) -> Reply:
    """429: too many wait for the deployment already."""
    text = f"{_found(model, busy)} and {waiting} requests wait for one. Try again in {retry_after} s."
    headers = ((b"retry-after", b"%d" % retry_after),)
    return _error(429, "rate_limit_error", "queue_full", text, headers=headers)


def not_woken(model: str, waited: float, retry_after: int, busy: bool = False) -> Reply:
    """503: the request was held, and no replica came, or none had room."""
    hope = "" if busy else "It may still be starting: "
    text = (
        f"{_found(model, busy)}; the request was held for {waited:.0f} s. {hope}{'Try' if busy else 'try'} again in "
        f"{retry_after} s. If this goes on, the ModelDeployment's conditions say why."
    )
    return unavailable(text, retry_after)


def stalled(model: str, why: str, retry_after: int) -> Reply:
    """503: no replica will come before a person acts."""
    text = f"'{_shown(model)}' cannot start until somebody who runs it acts: {why}"
    return unavailable(text, retry_after, "model_stalled")


def draining() -> Reply:
    """503: this gateway ends, another one is there."""
    return unavailable("This gateway is being replaced. Send the request again.", 1, "draining")


def event_of(reply: Reply) -> bytes:
    """An error as the only event of a stream whose head is out already."""
    return b"data: " + reply.body.replace(b"\n", b" ") + b"\n\n"


def upstream_timeout(seconds: float) -> Reply:
    """504: an answer that did not come, or did not go on."""
    text = f"The model server was silent for {seconds:.0f} s. Ask for fewer tokens, or stream."
    return _error(504, "server_error", "upstream_timeout", text)


def stream_timeout(seconds: float, identity: bytes) -> Reply:
    """504: not even the head of a stream came."""
    text = f"The model server did not begin its answer within {seconds:.0f} s." + _advice(identity)
    return _error(504, "server_error", "upstream_timeout", text)


def stream_error_event(message: str, identity: bytes) -> bytes:
    """The SSE event that tells a client that its stream broke; OpenAI's clients raise it."""
    return b"data: " + error_body(message + _advice(identity), "server_error", "upstream_failed") + b"\n\n"


def from_upstream(status: int, body: bytes, retry_after: int) -> Reply:
    """What a client is told when a server pod answers with an error status.

    A body in OpenAI's shape passes as it is. 401, 403 and 404 are between gateway and server (token, adapter not
    loaded yet) and never the client's doing, so they become 502 and 503.
    """
    if status in (401, 403):
        return upstream_failed(
            f"The model server refused the gateway ({status}). This is not your key; tell the operators."
        )
    if status == 404:
        return unavailable("The model server does not know this model yet; it may still be loading.", retry_after)
    if _is_openai_error(body):
        return Reply(status, body, reason="upstream_error")
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _error(status, kind, "upstream_error", _message_of(body) or f"The model server answered {status}.")


def _is_openai_error(body: bytes) -> bool:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict) and isinstance(found.get("error"), dict) and "message" in found["error"]


def _message_of(body: bytes) -> str:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(found, dict):
        return ""
    for name in ("message", "detail", "error"):
        if isinstance(found.get(name), str):
            return str(found[name])[:1000]
    return ""
