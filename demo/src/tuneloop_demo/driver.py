"""The demo from a bare machine to a served, tuned model: one phase after the other, each said and timed.

Run twice it changes nothing but the key: a finished job stays finished. Never prints the key but the one time, and
never writes it anywhere.
"""

import hashlib
import re
import secrets
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from tuneloop_demo import chart, dataset, follow, hub, model, report, talk
from tuneloop_demo.dataset import Dataset, Row
from tuneloop_demo.openapi import WELL_KNOWN
from tuneloop_demo.phases import Phases
from tuneloop_demo.target import Obj, Target, choose, example, provide_images

NAMESPACE = "demo"
DATASET_ID = "tuneloop/kubernetes-api-questions"
QUESTIONS = 3
LATENCY_PATIENCE_SECONDS = 90.0
POLL_SECONDS = 3.0


def new_key() -> tuple[str, str]:
    """Return a 256-bit random key and the hash that a resource may carry."""
    key = f"tl-{secrets.token_urlsafe(32)}"
    return key, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def with_key(deployment: Obj, hashed: str) -> Obj:
    """Return the manifest opened to the demo's key."""
    spec = {**deployment["spec"], "access": {"keys": [{"name": "demo", "hash": hashed}]}}
    return {**deployment, "spec": spec}


def questions(made: Dataset, wanted: int = QUESTIONS) -> list[Row]:
    """Return held-out questions to show: nested fields of the kinds that people know best, in the dataset's order."""

    def rank(row: Row) -> tuple[bool, int]:
        _, path, kind = re.split(r" field | of an? ", row.question.removesuffix(" do?"))
        return "." not in path, WELL_KNOWN.index(kind) if kind in WELL_KNOWN else len(WELL_KNOWN)

    return sorted(made.validation, key=rank)[:wanted]


def fill_hub(target: Target, image: str) -> Dataset:
    """Put the hub into the cluster with the model and a dataset made from this cluster's own documents."""
    with ThreadPoolExecutor(1) as pool:
        prepared = pool.submit(model.prepare)
        hub.deploy(target, image)
        made = dataset.build(hub.openapi_documents(target))
        with tempfile.TemporaryDirectory() as folder:
            dataset.write(made, Path(folder))
            hub.push(target, "datasets", DATASET_ID, Path(folder))
        hub.push(target, "models", model.MODEL_ID, prepared.result())
    print(f"   {hub.ENDPOINT}: {model.MODEL_ID}, {DATASET_ID}", end=" ")
    print(f"({len(made.train)} questions to train on, {len(made.validation)} held out)")
    return made


def apply_examples(target: Target, hashed: str) -> tuple[Obj, Obj]:
    """Apply both examples, the deployment with the hash of the demo's key; return them as applied."""
    job, deployment = example("finetunejob.yaml"), with_key(example("modeldeployment.yaml"), hashed)
    for manifest in (job, deployment):
        manifest["metadata"]["namespace"] = NAMESPACE
    print("   " + target.apply(job, deployment).strip().replace("\n", "\n   "))
    return job, deployment


def wait_for_latency(target: Target, name: str, since: datetime) -> Obj:
    """Return the deployment once its status tells of a window that ended after ``since``; as it is when none comes."""
    deadline = time.monotonic() + LATENCY_PATIENCE_SECONDS
    while True:
        found = target.get(follow.DEPLOYMENTS, name, NAMESPACE) or {}
        updated = (found.get("status", {}).get("latency") or {}).get("updatedTime")
        if (updated and datetime.fromisoformat(updated) >= since) or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)


def converse(target: Target, deployment: Obj, key: str, made: Dataset) -> str:
    """Ask base and tuned model the held-out questions, print what they said and return the gateway's URL."""
    base = str(deployment["metadata"]["name"])
    tuned = str(deployment["spec"]["adapters"][0]["name"])
    given: dict[str, list[talk.Answer]] = {base: [], tuned: []}
    since = datetime.now(UTC)
    with talk.gateway_url(target) as url:
        client = talk.connect(url, NAMESPACE, key)
        talk.wait_for_key(client, {base, tuned})
        for row in questions(made):
            pair = talk.ask(client, base, row.question), talk.ask(client, tuned, row.question)
            for name, answer in zip(given, pair, strict=True):
                given[name].append(answer)
            print("\n" + report.answers(row.question, row.answer, *pair))
    print("\nLatency, as measured by this client, and by the gateways in a minute's window (written once it is over):")
    print(report.latency(given, wait_for_latency(target, base, since)))
    return url


def install(target: Target, images: Mapping[str, str]) -> None:
    """Install the chart; the namespace comes first, for its roles lie in it."""
    target.apply(hub.namespace(NAMESPACE))
    chart.install(target, images, [NAMESPACE])
    print(f"   helm release {chart.RELEASE} in {chart.SYSTEM}, watching namespace {NAMESPACE}")


def demo(context: str, registry: str) -> None:
    """Run the whole demo; ``DemoError`` says what went wrong."""
    steps = Phases()
    with steps.phase("Kubernetes cluster and images"):
        target = choose(context, registry)
        images = provide_images(target)
    with steps.phase("Tuneloop, by its Helm chart"):
        install(target, images)
    with steps.phase("a hub with a foundation model and a dataset"):
        made = fill_hub(target, images["hub-mirror"])
    key, hashed = new_key()
    with steps.phase("FineTuneJob: fetch, check, train, evaluate, publish"):
        job, deployment = apply_examples(target, hashed)
        finished = follow.follow_job(target, job["metadata"]["name"], NAMESPACE)
    with steps.phase("ModelDeployment: served with its adapter"):
        served = follow.follow_deployment(target, deployment["metadata"]["name"], NAMESPACE)
    with steps.phase("questions that training never saw, through the gateway"):
        url = converse(target, deployment, key, made)
    print("\nScores, by the job's own evaluation:\n" + report.scores(finished))
    print("\nTime per phase:\n" + report.phases(steps.done))
    say_what_next(target, finished, served, url)
    print(f"\nThe key, shown this once: export KEY={key}")


def say_what_next(target: Target, finished: Obj, served: Obj, url: str) -> None:
    """Print where the models are served and three commands to try."""
    print(f"\nIn the cluster the OpenAI base URL is {served['status'].get('url', '')}")
    if not target.is_local:
        print(f"From here: {target.prefix()} -n {chart.SYSTEM} port-forward service/{talk.SERVICE} 8080:80")
        url = "http://localhost:8080"
    job, tuned = finished["metadata"]["name"], served["spec"]["adapters"][0]["name"]
    print("\nTry next:\n" + report.next_steps(target.prefix(), NAMESPACE, job, url, tuned))
