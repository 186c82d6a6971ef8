"""A finished job told to a real MLflow server, and one that is not there."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.stages import FetchResult, Notice, PublishInput, Reason, Scores, TrainResult

from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.tracking import Told, track

ON_LOOPBACK = AddressGuard(allowed=lambda address: address.is_loopback)
UV = Path(__file__).parents[2] / "scripts/uv"
SERVER = Path(__file__).parent / "mlflow_server"
START_SECONDS = 180
STEPS = 1200  # more than one call takes


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a database of its own; its environment is made on the first run."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = ["mlflow", "server", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environment |= {"UV_PROJECT_ENVIRONMENT": str(folder / "venv"), "HOME": os.environ.get("HOME", str(folder))}
    arguments = [str(UV), "run", "--locked", "--directory", str(SERVER), "--", *command, *store]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process, folder / "log")
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    pytest.fail(f"MLflow did not start at {url}:\n{log.read_text()[-3000:]}")


def told(endpoint: str, digest: str = "sha256:abc") -> Told:
    spec = {
        "model": {"uri": "hf://org/model"},
        "dataset": {"uri": "pvc://data/a.jsonl"},
        "tracking": {"mlflow": {"endpoint": endpoint}},
    }
    fetch = FetchResult(model_uri="hf://org/model@abc", model_path="m", model_commit="abc", model_bytes=1)
    train = TrainResult(
        base=Scores(eval_loss=2.5),
        tuned=Scores(eval_loss=1.5, tasks={"arc_easy/acc": 0.5}),
        steps=STEPS,
        epochs=1,
        tokens=10,
        seconds=1,
        tokens_per_second=10,
        final_loss=1,
        peak_memory_bytes=1,
        trainable_parameters=1,
        total_parameters=1,
        resumes=0,
    )
    stage_input = PublishInput(owner="o", name="job", namespace="team", spec=spec, fetch=fetch)
    return Told(stage_input, FineTuneJobSpec.model_validate(spec), train, digest)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    lines = [{"time": 1000.0 + step, "step": step, "loss": 3 - step / STEPS} for step in range(1, STEPS + 1)]
    (tmp_path / "work/train").mkdir(parents=True)
    (tmp_path / "work/train/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Paths(tmp_path)


def ask(url: str, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx2.post(f"{url}/api/2.0/mlflow/{path}", json=body)
    return dict(answer.raise_for_status().json())


def only(notices: list[Notice]) -> Notice:
    (notice,) = notices
    return notice


def test_a_run_has_the_curve_the_scores_and_the_settings(mlflow: str, paths: Paths) -> None:
    notice = only(track(told(mlflow), paths, ON_LOOPBACK))
    assert notice.reason is Reason.TRACKED, notice.message
    assert only(track(told(mlflow), paths, ON_LOOPBACK)) == notice  # publish tried again: the same run
    experiment = httpx2.get(
        f"{mlflow}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "tuneloop/team"}
    ).json()["experiment"]["experiment_id"]
    (run,) = ask(mlflow, "runs/search", experiment_ids=[experiment])["runs"]
    assert run["info"]["run_id"] in notice.message
    assert run["info"]["status"] == "FINISHED"
    metrics = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    assert metrics["base/evalLoss"] == 2.5
    assert metrics["tuned/arc_easy/acc"] == 0.5
    assert metrics["loss"] == pytest.approx(2.0)
    settings = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert settings["model.resolved"] == "hf://org/model@abc"
    assert settings["method.lora.rank"] == "16"
    query = {"run_id": run["info"]["run_id"], "metric_key": "loss", "max_results": 5000}
    curve = httpx2.get(f"{mlflow}/api/2.0/mlflow/metrics/get-history", params=query).json()["metrics"]
    assert [each["step"] for each in curve] == list(range(1, STEPS + 1))


def test_a_server_that_is_down_is_a_notice_after_a_few_tries(paths: Paths) -> None:
    waits: list[float] = []
    notice = only(track(told(f"http://127.0.0.1:{free_port()}"), paths, ON_LOOPBACK, waits.append))
    assert notice.reason is Reason.TRACKING_FAILED
    assert "The artifact is published without it" in notice.message
    assert len(waits) == 3


def test_a_forbidden_address_is_a_notice_at_once(paths: Paths) -> None:
    waits: list[float] = []
    notice = only(track(told("http://127.0.0.1:5000"), paths, AddressGuard(), waits.append))
    assert notice.reason is Reason.TRACKING_FAILED
    assert "a loopback address" in notice.message
    assert waits == []
