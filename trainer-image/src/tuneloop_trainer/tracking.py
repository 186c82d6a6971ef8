"""A finished job told to an MLflow server: curve, scores and settings, from the files that training left.

By MLflow's REST API through the guarded client, so that its address is checked like any other. The artifact is whole
before this begins, and nothing here can fail the job: what goes wrong is a notice. One run for one artifact, however
often publish is tried.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.api.tracking import MLflowTracking
from tuneloop_core.stages import Notice, PublishInput, Reason, Scores, TrainResult

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.guard import AddressGuard, guarded_client
from tuneloop_trainer.paths import Paths

log = logging.getLogger("tuneloop")

WAITS = (1.0, 4.0, 15.0)  # seconds between tries
METRICS_AT_ONCE, PARAMS_AT_ONCE, LONGEST_PARAM = 1000, 100, 500  # MLflow's limits
RECORDED = ("loss", "learningRate", "gradientNorm")
DIGEST_TAG = "tuneloop.artifact"
MISSING = "RESOURCE_DOES_NOT_EXIST"

Obj = dict[str, Any]


class TrackingError(Exception):
    """What the server said; ``again`` where time may mend it."""

    def __init__(self, words: str, *, again: bool = False) -> None:
        super().__init__(words)
        self.again = again


@dataclass(frozen=True)
class Told:
    """What a run is made of."""

    stage_input: PublishInput
    spec: FineTuneJobSpec
    train: TrainResult
    digest: str


def track(told: Told, paths: Paths, guard: AddressGuard, sleep: Callable[[float], None] = time.sleep) -> list[Notice]:
    """Tell the tracker; what came of it as notices, none where the job names no tracker. Never raises."""
    if told.spec.tracking is None:
        return []
    settings = told.spec.tracking.mlflow
    try:
        run = _tried(lambda: _tell(settings, told, paths, guard), sleep)
    except (TrackingError, StageError, httpx2.HTTPError, ValueError, KeyError, OSError) as error:
        words = " ".join(str(error).split())
        message = f"{settings.endpoint} was not told: {words}"[:180] + ". The artifact is published without it."
        log.warning(message)
        return [Notice(reason=Reason.TRACKING_FAILED, message=message[:256])]
    return [Notice(reason=Reason.TRACKED, message=f"MLflow run {run} at {settings.endpoint}"[:256])]


def _tried(work: Callable[[], str], sleep: Callable[[float], None]) -> str:
    for wait in WAITS:
        try:
            return work()
        except TrackingError as error:
            if not error.again:
                raise
            log.info("the tracker: %s; again in %g s", error, wait)
        except httpx2.TransportError as error:
            log.info("the tracker did not answer: %s; again in %g s", error, wait)
        sleep(wait)
    return work()


def _tell(settings: MLflowTracking, told: Told, paths: Paths, guard: AddressGuard) -> str:
    with guarded_client(guard) as client:
        server = _Server(client, settings.endpoint, paths)
        experiment = server.experiment(settings.experiment or f"tuneloop/{told.stage_input.namespace}")
        run, finished = server.run(experiment, told)
        if finished:
            return run
        for metrics in _batches(list(_metrics(told, paths.work / "train/metrics.jsonl")), METRICS_AT_ONCE):
            server.post("runs/log-batch", {"run_id": run, "metrics": metrics})
        for params in _batches(list(_params(told)), PARAMS_AT_ONCE):
            server.post("runs/log-batch", {"run_id": run, "params": params})
        server.post("runs/update", {"run_id": run, "status": "FINISHED", "end_time": _now()})
        return run


class _Server:
    """MLflow's REST API, as far as a run needs it."""

    def __init__(self, client: httpx2.Client, endpoint: str, paths: Paths) -> None:
        self._client, self._base = client, f"{endpoint.rstrip('/')}/api/2.0/mlflow/"
        token, user = paths.secret("tracking", "token"), paths.secret("tracking", "username")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._auth = (user, paths.secret("tracking", "password")) if user and not token else None

    def experiment(self, name: str) -> str:
        """The id of an experiment, made where it is missing."""
        answer = self._send("GET", "experiments/get-by-name", params={"experiment_name": name})
        if answer.status_code == 404 and MISSING in answer.text:
            return str(self.post("experiments/create", {"name": name})["experiment_id"])
        return str(_good(answer)["experiment"]["experiment_id"])

    def run(self, experiment: str, told: Told) -> tuple[str, bool]:
        """The run of this artifact, and whether it is finished: one that a try before left is gone on with."""
        wanted = {"experiment_ids": [experiment], "filter": f"tags.`{DIGEST_TAG}` = '{told.digest}'", "max_results": 1}
        for found in self.post("runs/search", wanted).get("runs", []):
            return str(found["info"]["run_id"]), found["info"]["status"] == "FINISHED"
        name = f"{told.stage_input.namespace}/{told.stage_input.name}"
        tags = [{"key": DIGEST_TAG, "value": told.digest}, {"key": "tuneloop.finetunejob", "value": name}]
        new = {"experiment_id": experiment, "run_name": name, "start_time": _now(), "tags": tags}
        return str(self.post("runs/create", new)["run"]["info"]["run_id"]), False

    def post(self, path: str, body: Obj) -> Obj:
        """One call; raises ``TrackingError`` for anything but success."""
        return _good(self._send("POST", path, json=body))

    def _send(self, method: str, path: str, **what: Any) -> httpx2.Response:
        return self._client.request(method, self._base + path, headers=self._headers, auth=self._auth, **what)


def _good(answer: httpx2.Response) -> Obj:
    if answer.is_success:
        found: Obj = answer.json()
        return found
    again = answer.status_code == 429 or answer.status_code >= 500
    hint = " Check the keys of tracking.mlflow.credentialsSecret." if answer.status_code in (401, 403) else ""
    raise TrackingError(f"it said {answer.status_code}: {answer.text[:100]}{hint}", again=again)


def _metrics(told: Told, recorded: Path) -> Iterator[Obj]:
    """Every step's loss as recorded, then the scores of base and tuned model at the last step."""
    with recorded.open(encoding="utf-8") as lines:
        for line in lines:
            step = json.loads(line)
            for key in RECORDED:
                if isinstance(step.get(key), int | float):
                    yield _metric(key, step[key], step["step"], round(step["time"] * 1000))
    for side, scores in (("base", told.train.base), ("tuned", told.train.tuned)):
        for key, value in _scores(scores):
            yield _metric(f"{side}/{key}", value, told.train.steps, _now())


def _scores(scores: Scores) -> Iterator[tuple[str, float]]:
    values = scores.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, value in (values | values.pop("tasks", {})).items():
        if isinstance(value, int | float):
            yield key, value


def _metric(key: str, value: float, step: int, milliseconds: int) -> Obj:
    return {"key": key, "value": value, "step": step, "timestamp": milliseconds}


def _params(told: Told) -> Iterator[Obj]:
    """The settings that say what was trained, flat."""
    spec = told.spec.to_dict()
    fetch = told.stage_input.fetch
    yield {"key": "model.resolved", "value": fetch.model_uri}
    yield {"key": "dataset.digest", "value": fetch.dataset_digest}
    for block in ("model", "dataset", "method", "training"):
        yield from _flat(block, spec[block])


def _flat(name: str, value: Any) -> Iterator[Obj]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "credentialsSecret":
                yield from _flat(f"{name}.{key}", inner)
    elif value not in ("", None):
        yield {"key": name, "value": str(value)[:LONGEST_PARAM]}


def _batches(items: list[Obj], size: int) -> Iterator[list[Obj]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _now() -> int:
    return round(time.time() * 1000)
