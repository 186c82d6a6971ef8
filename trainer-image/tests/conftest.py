"""A tiny model and dataset, made once; a pod's folders for each test; and real servers, one a file."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import artifacts
import pods
import pytest
import stores
import torch

torch.set_num_threads(1)
tiny_model = pods.load_tiny_model()


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are compared to more digits than bfloat16 has, in which some CPUs would compute."""
    monkeypatch.setattr("tuneloop_trainer.machine.cpu_dtype", lambda: torch.float32)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_model.write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_model.write_tiny_dataset(tmp_path_factory.mktemp("colours"), rows=48))


@pytest.fixture
def bare_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pods.Pod:
    return pods.Pod(tmp_path / "pod", monkeypatch)


@pytest.fixture
def pod(bare_pod: pods.Pod, tiny: Path, colours: Path) -> pods.Pod:
    """A pod with the tiny model and dataset in place."""
    shutil.copytree(tiny, bare_pod.paths.model, dirs_exist_ok=True)
    shutil.copytree(colours, bare_pod.paths.dataset, dirs_exist_ok=True)
    return bare_pod


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.S3Server]:
    """With the bucket ``models``, and an account ``stranger`` that may do nothing in it."""
    with stores.s3_server(tmp_path_factory.mktemp("s3") / "server") as running:
        artifacts.s3_client_of(running).create_bucket(Bucket="models")
        running.add_user("stranger", "stranger-word")
        yield running


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an OCI registry, without TLS; ``stores.WRITER`` may push and pull."""
    with stores.registry_server(tmp_path_factory.mktemp("oci") / "server") as address:
        yield f"http://{address}"
