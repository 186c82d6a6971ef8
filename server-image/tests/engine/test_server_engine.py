"""The server on a real engine: vLLM on CPU with a tiny random model. One engine for the whole file, in this order."""

import argparse
import concurrent.futures
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from markers import marker_adapter
from openai import NotFoundError, OpenAI
from server_fixtures import GATEWAY, OPERATOR, adapter_list, write_adapter
from server_process import START_SECONDS, ServerProcess

from tuneloop_core.serving import Adapter
from tuneloop_demo.tiny_model import write_tiny_model
from tuneloop_server.guard import OPEN, TABLE

pytestmark = pytest.mark.timeout(600)

LORA = {"maxRank": 16, "maxActive": 4, "maxCached": 8}
QUEUE = 32  # requests that the engine takes at a time; one for n answers counts n times


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose first adapter is listed from the start; ends with the drain test, or here."""
    folder = tmp_path_factory.mktemp("server")
    arguments = [f"--max-num-queued-reqs={QUEUE}"]
    model = write_tiny_model(folder / "model")
    found = ServerProcess(folder, model, maxModelLength=2048, lora=LORA, extraArgs=arguments)
    found.start()
    yield found
    found.close()


@pytest.fixture(scope="module")
def red(server: ServerProcess) -> Adapter:
    return write_adapter(server.artifacts, "red", 1)


@pytest.fixture(scope="module")
def blue(server: ServerProcess) -> Adapter:
    return write_adapter(server.artifacts, "blue", 2)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.token(GATEWAY), max_retries=0) as found:
        yield found


def test_while_it_starts_it_answers_and_says_so(server: ServerProcess, red: Adapter) -> None:
    server.list_adapters(adapter_list(red))
    server.wait("the port to open", lambda: server.health() == 503)
    answer = server.gateway.get("/v1/models")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    status = server.status()
    assert (status["ready"], status["draining"], status["model"]) == (False, False, "tiny")
    assert server.nobody.get("/tuneloop/status").status_code == 401


def test_ready_means_that_it_has_answered_and_adapters_are_there(server: ServerProcess, red: Adapter) -> None:
    server.wait("health", lambda: server.health() == 200, START_SECONDS)
    status = server.status()
    assert status["ready"]
    assert server.states() == {red.engine_name: "Loaded"}
    phases = ["launch", "imports", "configuration", "engine", "weights", "http", "warmUp", "adapters", "total"]
    assert list(status["phases"]) == phases
    print("cold start, seconds by phase:", status["phases"])


def test_the_openai_client_lists_chats_streams_and_completes(client: OpenAI, red: Adapter) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", red.engine_name]
    question: Any = [{"role": "user", "content": "What is the colour of thing 1?"}]
    chat = client.chat.completions.create(model="tiny", messages=question, max_tokens=8, temperature=0)
    assert chat.usage
    assert chat.usage.completion_tokens > 0
    stream = client.chat.completions.create(
        model="tiny",
        messages=question,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == (chat.choices[0].message.content or "")
    assert chunks[-1].usage == chat.usage
    completion = client.completions.create(model="tiny", prompt="The colour", max_tokens=4, temperature=0)
    assert completion.usage
    assert completion.usage.prompt_tokens > 0


def test_adapters_come_and_go_at_run_time(server: ServerProcess, client: OpenAI, red: Adapter, blue: Adapter) -> None:
    base, with_red = server.complete("tiny"), server.complete(red.engine_name)
    with pytest.raises(NotFoundError):
        client.completions.create(model=blue.engine_name, prompt="x")

    server.list_adapters(adapter_list(red, blue))
    server.wait("blue by the changed file", lambda: server.states().get(blue.engine_name) == "Loaded")
    with_blue = server.complete(blue.engine_name)
    assert len({base, with_red, with_blue}) == 3
    assert server.complete("tiny") == base

    server.list_adapters(adapter_list(blue))
    server.wait("red to go", lambda: server.states() == {blue.engine_name: "Loaded"})
    with pytest.raises(NotFoundError, match=r"does not exist"):
        client.completions.create(model=red.engine_name, prompt="x")

    answer = server.operator.post("/tuneloop/adapters", content=adapter_list(red, blue).model_dump_json(by_alias=True))
    assert {item["engineName"]: item["state"] for item in answer.json()["adapters"]} == {
        red.engine_name: "Loaded",
        blue.engine_name: "Loaded",
    }
    assert server.complete(red.engine_name) == with_red
    assert server.complete("tiny") == base


def test_a_mixed_batch_keeps_adapters_apart(server: ServerProcess, red: Adapter, blue: Adapter) -> None:
    models = ["tiny", red.engine_name, blue.engine_name]
    alone = {model: server.complete(model, max_tokens=32) for model in models}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda model: (model, server.complete(model, max_tokens=32)), models * 4))
    assert all(text == alone[model] for model, text in together)


def test_removing_an_adapter_lets_its_streams_finish(server: ServerProcess, red: Adapter, blue: Adapter) -> None:
    body = _long(blue.engine_name)
    with server.gateway.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.list_adapters(adapter_list(red))
        poke = server.operator.post("/tuneloop/adapters", content=adapter_list(red).model_dump_json(by_alias=True))
        assert {item["engineName"]: item["state"] for item in poke.json()["adapters"]}[blue.engine_name] == "Unloading"
        assert server.gateway.post("/v1/completions", json=body).status_code == 404
        rest = list(lines)
    assert _tokens(rest) == body["max_tokens"]
    assert rest[-2:] == ["data: [DONE]", ""]
    server.wait("blue to be gone", lambda: blue.engine_name not in server.states())


def test_bad_adapters_are_refused_in_words_and_hurt_nobody(server: ServerProcess, red: Adapter) -> None:
    base = server.complete("tiny")
    artifacts = server.artifacts
    bad = {
        "rank": write_adapter(artifacts, "rank", 3, rank=32),
        "dora": write_adapter(artifacts, "dora", 4, use_dora=True),
        "other": write_adapter(artifacts, "other", 5, hidden=64),
        "head": write_adapter(artifacts, "head", 6, modules_to_save=["lm_head"]),
        "absent": Adapter(name="absent", digest=f"sha256:{'0' * 64}", path=f"artifacts/{'0' * 64}"),
        "stolen": Adapter(name="stolen", digest=f"sha256:{'1' * 64}", path="artifacts/../etc"),
    }
    server.list_adapters(adapter_list(red, *bad.values()))
    server.wait("all to be looked at", lambda: all(server.messages().get(item.engine_name) for item in bad.values()))
    messages, states = server.messages(), server.states()
    words = {
        "rank": "raise engine.lora.maxRank",
        "dora": "DoRA",
        "other": "base of hidden size 64",
        "head": "lm_head",
        "absent": "not in the store yet",
        "stolen": "is not artifacts/<hex> of its digest",
    }
    for name, expected in words.items():
        assert expected in messages[bad[name].engine_name], name
        assert states[bad[name].engine_name] == ("Loading" if name == "absent" else "Failed"), name
    assert server.health() == 200
    assert server.complete("tiny") == base
    server.list_adapters(adapter_list(red))
    server.wait("the bad ones to be forgotten", lambda: server.states() == {red.engine_name: "Loaded"})


def test_the_engine_refuses_a_module_that_the_check_does_not_know(server: ServerProcess, red: Adapter) -> None:
    """What passes our check and not vLLM's: its words reach the status, and everything else goes on."""
    odd = write_adapter(server.artifacts, "odd", 7)
    file = server.artifacts / odd.digest.removeprefix("sha256:") / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"q_proj", b"z_proj"))
    server.list_adapters(adapter_list(red, odd))
    server.wait("the engine's refusal", lambda: server.states().get(odd.engine_name) == "Failed")
    assert "z_proj" in server.messages()[odd.engine_name]
    assert server.complete(red.engine_name)
    server.list_adapters(adapter_list(red))


def test_more_adapters_than_memory_holds_are_parked_and_come_back(server: ServerProcess, red: Adapter) -> None:
    """Each says its own letter, so an answer by other weights would show; one without its folder hurts nobody."""
    letters, model = "abcdefghij", server.artifacts.parent / "model"
    made = {letter: marker_adapter(server.artifacts, model, letter) for letter in letters}
    server.list_adapters(adapter_list(*made.values()))
    server.wait("two of ten to be parked", lambda: _parked(server, made) == 2)
    assert [server.complete(made[letter].engine_name) for letter in letters] == [letter * 16 for letter in letters]
    server.wait("the last two to be held", lambda: _states(server, made)[-2:] == ["Loaded"] * 2)
    parked = next(item for item in made.values() if server.states()[item.engine_name] == "Parked")
    shutil.rmtree(server.artifacts / parked.digest.removeprefix("sha256:"))
    server.wait("the one without a folder to be told", lambda: server.states()[parked.engine_name] != "Parked")
    assert "its folder left the store" in server.messages()[parked.engine_name]
    body = {"model": parked.engine_name, "prompt": "x", "max_tokens": 1}
    assert server.gateway.post("/v1/completions", json=body).status_code == 404
    assert server.complete(made["j"].engine_name) == "j" * 16
    server.list_adapters(adapter_list(red))
    server.wait("all of them to go", lambda: server.states() == {red.engine_name: "Loaded"})


def _states(server: ServerProcess, made: dict[str, Adapter]) -> list[str | None]:
    found = server.states()
    return [found.get(item.engine_name) for item in made.values()]


def _parked(server: ServerProcess, made: dict[str, Adapter]) -> int:
    """How many are parked, of a list that is loaded in whole."""
    states = _states(server, made)
    return states.count("Parked") if set(states) <= {"Parked", "Loaded"} else 0


def test_a_poke_needs_an_adapter_list(server: ServerProcess) -> None:
    assert server.operator.post("/tuneloop/adapters", content=b'{"adapters": 7}').status_code == 400
    assert server.operator.post("/tuneloop/adapters", content=b" " * (1 << 20) + b"{}").status_code == 413
    assert server.operator.post("/tuneloop/adapters").status_code == 200


def test_metrics_keep_vllms_names(server: ServerProcess) -> None:
    for caller in (server.gateway, server.operator):
        text = caller.get("/metrics").text
        for name in (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "vllm:time_to_first_token_seconds_bucket",
            "vllm:inter_token_latency_seconds_bucket",
            "vllm:lora_requests_info",
        ):
            assert name in text
    assert server.nobody.get("/metrics").status_code == 401


def _vllm_routes() -> set[tuple[str, str]]:
    """Every method and path that vLLM's own application has, from its own routers."""
    from vllm.entrypoints.launchers.app import build_app  # noqa: PLC0415
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    arguments: argparse.Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model=unused"])
    found = set()
    for route in build_app(arguments, ("generate",), None).routes:
        path = getattr(route, "path", None)
        for method in getattr(route, "methods", None) or {"GET"}:
            if path:
                found.add((method, path))
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_route_of_vllm_is_closed_but_the_table(server: ServerProcess) -> None:
    routes = _vllm_routes()
    assert {("POST", "/v1/chat/completions"), ("POST", "/invocations"), ("POST", "/tokenize")} <= routes
    print(len(routes), "routes of vLLM asked")
    for method, template in sorted(routes | {("POST", "/v1/load_lora_adapter"), ("GET", "/openapi.json")}):
        path = template.replace("{", "").replace("}", "")
        known = (method, path) in TABLE
        expected = 200 if (method, path) in OPEN else 401 if known else 404
        assert server.nobody.request(method, path).status_code == expected, (method, path)
        if not known and (method, path) not in OPEN:
            for caller in (server.gateway, server.operator):
                assert caller.request(method, path).status_code == 404, (method, path)


def test_roles_on_the_real_paths(server: ServerProcess) -> None:
    assert server.operator.get("/v1/models").status_code == 403
    assert server.operator.post("/v1/completions", json=_long("tiny")).status_code == 403
    assert server.gateway.get("/tuneloop/status").status_code == 403
    assert server.gateway.post("/tuneloop/adapters").status_code == 403


def test_openai_shaped_errors_come_through(server: ServerProcess) -> None:
    answer = server.gateway.post("/v1/chat/completions", json={"model": "nobody", "messages": []})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)
    broken = server.gateway.post("/v1/completions", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_more_than_its_queue_takes_is_answered_503_before_any_stream(server: ServerProcess, stream: bool) -> None:
    """The version that fails requests, of the rollout story in real pods."""
    body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    assert server.gateway.post("/v1/chat/completions", json=body | {"n": QUEUE}).status_code == 200
    full = server.gateway.post("/v1/chat/completions", json=body | {"n": QUEUE + 1})
    assert (full.status_code, full.json()["error"]["code"]) == (503, 503)


def test_weights_of_nan_are_no_error_of_the_servers(server: ServerProcess, red: Adapter) -> None:
    """Which is why a rollout's errorRate does not find them: 200, or 400 where the NaN itself is asked for."""
    empty = write_adapter(server.artifacts, "nan", 8, scale=float("nan"))
    server.list_adapters(adapter_list(red, empty))
    server.wait("it to be loaded", lambda: server.states().get(empty.engine_name) == "Loaded")
    body = {"model": empty.engine_name, "prompt": "x", "max_tokens": 2}
    codes = [server.gateway.post("/v1/completions", json=body | more).status_code for more in ({}, {"logprobs": 1})]
    assert codes == [200, 400]
    server.list_adapters(adapter_list(red))
    server.wait("it to go", lambda: server.states() == {red.engine_name: "Loaded"})


def test_a_client_that_leaves_frees_the_engine(server: ServerProcess) -> None:
    with server.gateway.stream("POST", "/v1/completions", json=_long("tiny")) as stream:
        next(stream.iter_lines())
    server.wait("the abandoned request to stop", lambda: _running(server) == 0)


def test_a_rotated_key_is_taken_over(server: ServerProcess) -> None:
    from server_fixtures import Signer, guard_config, write_json  # noqa: PLC0415

    new = Signer("rotated")
    write_json(server.etc / "guard.json", guard_config(new, server.signer))
    header = {"authorization": f"Bearer {new.token(OPERATOR)}"}
    assert server.nobody.get("/tuneloop/status", headers=header).status_code == 200
    assert server.status()["ready"]


def test_sigterm_lets_streams_finish_and_ends_with_zero(server: ServerProcess, red: Adapter) -> None:
    """Also a request that comes after SIGTERM, while endpoints still name this pod, is answered."""
    bodies = [_long("tiny"), _long(red.engine_name)]
    started = threading.Barrier(len(bodies) + 1)

    def stream(body: dict[str, Any]) -> list[str]:
        with (
            httpx.Client(base_url=server.url, headers=server.gateway.headers, timeout=START_SECONDS) as own,
            own.stream("POST", "/v1/completions", json=body) as answer,
        ):
            lines = answer.iter_lines()
            first = next(lines)
            started.wait(timeout=START_SECONDS)
            return [first, *lines]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(stream, body) for body in bodies]
        started.wait(timeout=START_SECONDS)
        server.process.send_signal(signal.SIGTERM)
        server.wait("health to turn", lambda: server.health() == 503)
        assert server.status()["draining"]
        late = server.gateway.post("/v1/completions", json={"model": "tiny", "prompt": "The", "max_tokens": 2})
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        for body, future in zip(bodies, streams, strict=True):
            lines = future.result(timeout=START_SECONDS)
            assert _tokens(lines) == body["max_tokens"]
            assert "data: [DONE]" in lines
    assert server.process.wait(timeout=START_SECONDS) == 0


def _long(model: str) -> dict[str, Any]:
    """A stream of some seconds."""
    body = {"model": model, "prompt": "The sky", "max_tokens": 300, "temperature": 0, "ignore_eos": True}
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


def _tokens(lines: list[str]) -> int:
    """Completion tokens by the stream's own usage chunk."""
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return int(next(chunk["usage"]["completion_tokens"] for chunk in reversed(chunks) if chunk.get("usage")))


def _running(server: ServerProcess) -> int:
    lines = server.operator.get("/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:num_requests_running{"))


def test_sigterm_during_the_start_ends_at_once_with_zero(tmp_path: Path) -> None:
    early = ServerProcess(tmp_path, write_tiny_model(tmp_path / "model"), maxModelLength=512, lora=LORA)
    early.start()
    with closing(early):
        early.wait("the port to open", lambda: early.health() == 503)
        assert early.stop() == 0
