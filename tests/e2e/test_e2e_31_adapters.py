"""Twenty adapters on one engine in real pods: by job, label and URI; parked and back; a new pod; removed; a misfit.

Those by URI are built, not trained (``server-image/tests/support/markers.py``): each answers with its own letter only,
so an answer by other weights would show. The engine is the one of test_e2e_30, which holds four of them.
"""

import importlib.util
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e_kube import Kube, condition
from e2e_world import API_KEY, NAMESPACE, SYSTEM, adapter_job, gateway_url, model_deployment

from tuneloop_core.servertokens import server_audience
from tuneloop_demo import hub
from tuneloop_demo.target import Target
from tuneloop_demo.tiny_model import write_tiny_model

ENGINE, BY_LABEL, MISFIT = "tiny-chat", "newest", "too-big"
COUNT, HELD, TOKENS = 20, 4, 4  # HELD: the engine's maxCached
LABEL = {"story": "adapters"}
MARKERS = Path(__file__).parents[2] / "server-image/tests/support/markers.py"
STATUS = (
    "import sys,urllib.request\n"
    "asked = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})\n"
    "print(urllib.request.urlopen(asked, timeout=30).read().decode())\n"
)


@pytest.fixture(scope="module")
def says(kube: Kube, target: Target, world: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """All of them loaded beside those that the engine had before; the letter of each marker by its name."""
    if kube.get("mdep", ENGINE, NAMESPACE) is None:  # this file runs alone
        kube.apply(model_deployment(ENGINE, adapters=[]))
    before = (kube.get("mdep", ENGINE, NAMESPACE) or {})["spec"].get("adapters", [])
    job = adapter_job("labelled")
    job["metadata"]["labels"] = LABEL
    kube.apply(job)
    letters = push_markers(target, tmp_path_factory.mktemp("markers"), COUNT - 1 - len(before))
    added = [by_uri(name) for name in (*letters, MISFIT)]
    patch(kube, [*before, {"name": BY_LABEL, "from": {"selector": {"matchLabels": LABEL}}}, *added])
    ready = lambda: sum(each["state"] == "Ready" for each in adapters(kube).values()) == COUNT  # noqa: E731
    kube.wait_for(f"{COUNT} adapters to be loaded", ready, timeout=900, explain=lambda: str(adapters(kube)))
    yield letters
    patch(kube, before)


def push_markers(target: Target, folder: Path, count: int) -> dict[str, str]:
    """Adapters in the hub: ``says-N`` for each letter, and one of twice the rank that the engine takes."""
    spec = importlib.util.spec_from_file_location("markers", MARKERS)
    assert spec
    assert spec.loader
    markers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(markers)
    model = write_tiny_model(folder / "model")
    letters = {f"says-{number}": markers.LETTERS[number] for number in range(count)}
    for name, letter, rank in (*((name, letter, 8) for name, letter in letters.items()), (MISFIT, "Z", 16)):
        made = markers.marker_adapter(folder / name, model, letter, rank)
        hub.push(target, "models", f"tuneloop/{name}", folder / name / made.digest.removeprefix("sha256:"))
    return letters


def by_uri(name: str) -> dict[str, Any]:
    return {"name": name, "from": {"uri": f"hf://tuneloop/{name}"}}


def patch(kube: Kube, listed: list[dict[str, Any]]) -> None:
    body = json.dumps({"spec": {"adapters": listed}})
    kube.run("patch", "mdep", ENGINE, "-n", NAMESPACE, "--type=merge", "-p", body)


def adapters(kube: Kube) -> dict[str, dict[str, Any]]:
    found = (kube.get("mdep", ENGINE, NAMESPACE) or {}).get("status") or {}
    return {each["name"]: each for each in found.get("adapters", [])}


def server_states(kube: Kube) -> list[str]:
    """As the server tells the operator; asked from its pod, with a token of its account for this namespace."""
    url = f"http://{ENGINE}-server.{NAMESPACE}.svc:8000/tuneloop/status"
    audience = f"--audience={server_audience(NAMESPACE)}"
    token = kube.run("create", "token", "tuneloop-operator", "-n", SYSTEM, audience).strip()
    asked = ("exec", "-n", SYSTEM, "deployment/tuneloop-operator", "--", "python", "-c", STATUS, url, token)
    return [each["state"] for each in json.loads(kube.run(*asked))["adapters"]]


def server_pods(kube: Kube) -> list[str]:
    labels = f"tuneloop.dev/modeldeployment={ENGINE},app.kubernetes.io/component=server"
    return [pod["metadata"]["name"] for pod in kube.list("pods", NAMESPACE, labels)]


@pytest.fixture
def client(kube: Kube) -> Iterator[httpx.Client]:
    key = {"Authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=f"{gateway_url(kube)}/{NAMESPACE}/v1/", headers=key, timeout=300) as found:
        yield found


def ask(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("completions", json={"model": name, "prompt": "A pod", "max_tokens": TOKENS, "temperature": 0})


def judge(answer: httpx.Response, name: str, letter: str) -> None:
    """Answered, by a version of this name (``model`` tells which), with its letter where it has one."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"].partition("@")[0] == name
    assert body["choices"][0]["text"] == letter * TOKENS or not letter


def served(kube: Kube, says: dict[str, str]) -> dict[str, str]:
    """Each name that is served, and its letter; a trained one has none."""
    return {name: says.get(name, "") for name, each in adapters(kube).items() if each["state"] == "Ready"}


def test_each_answers_under_its_own_name_also_after_it_was_parked(
    kube: Kube, says: dict[str, str], client: httpx.Client
) -> None:
    """Asked twice in turn, every one but the last four comes back from the store."""
    names = served(kube, says)
    assert len(names) == COUNT
    assert {*names} <= {each["id"] for each in client.get("models").json()["data"]}
    assert server_states(kube).count("Parked") == COUNT - HELD
    for _ in range(2):
        for name, letter in names.items():
            judge(ask(client, name), name, letter)
    assert adapters(kube)[BY_LABEL]["message"] == "1 job matches; newest complete is labelled"
    told = condition(kube.get("mdep", ENGINE, NAMESPACE), "AdaptersReady")["message"]
    assert f"a server holds {HELD} (engine.lora.maxCached), the others are parked" in told


def test_a_new_pod_has_all_of_them_before_its_traffic(kube: Kube, says: dict[str, str], client: httpx.Client) -> None:
    """The only pod is lost; all are asked at once meanwhile, and held until the next pod is ready for every one."""
    names = served(kube, says)
    (before,) = server_pods(kube)
    kube.run("delete", "pod", before, "-n", NAMESPACE, "--grace-period=1", "--wait=true")
    with ThreadPoolExecutor(COUNT) as callers:
        answers = callers.map(lambda name: ask(client, name), names)
    for answer, (name, letter) in zip(answers, names.items(), strict=True):
        judge(answer, name, letter)
    assert before not in server_pods(kube)
    assert set(server_states(kube)) == {"Loaded", "Parked"}


def test_a_misfit_is_refused_with_its_reason(kube: Kube, says: dict[str, str]) -> None:
    found = adapters(kube)[MISFIT]
    assert (found["reason"], found["state"] == "Ready") == ("AdapterMisfit", False)
    assert "maxRank" in found["message"]


def test_a_removed_one_is_not_found_and_the_others_answer(
    kube: Kube, says: dict[str, str], client: httpx.Client
) -> None:
    listed = (kube.get("mdep", ENGINE, NAMESPACE) or {})["spec"]["adapters"]
    patch(kube, [each for each in listed if each["name"] != "says-0"])
    codes: list[int] = []
    kube.wait_for("404", lambda: codes.append(ask(client, "says-0").status_code) or codes[-1] == 404, interval=0.05)
    assert set(codes) <= {200, 404}, "nothing but its answer or its absence is seen on the way"
    assert ask(client, "says-1").json()["choices"][0]["text"] == says["says-1"] * TOKENS
