"""Exports to hf:// by the hub's own client, against a server of its protocol."""

from collections.abc import Iterator
from pathlib import Path

import artifacts
import hub_uploads
import pytest
from huggingface_hub import constants
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.paths import Paths

URI = "hf://team/bot"
# The hub client's own way to send a file; errors only because this suite makes warnings errors.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_uploads.UploadHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # as the pod's environment does
    with hub_uploads.serving_uploads() as running:
        yield running


@pytest.fixture
def pod(tmp_path: Path) -> Paths:
    return artifacts.pod_with(tmp_path / "pod", token=hub_uploads.TOKEN)


def test_one_commit_in_a_private_repository_and_a_second_run_makes_none(
    hub: hub_uploads.UploadHub, pod: Paths, tmp_path: Path
) -> None:
    artifact = artifacts.sealed_artifact(tmp_path)
    exported = artifacts.run_export(artifact, pod, URI, hub_endpoint=hub.url)
    assert exported == f"{URI}@{hub.commit('team/bot')}"
    assert hub.files("team/bot") == artifacts.contents(artifact)
    assert "team/bot" in hub.private
    assert artifacts.run_export(artifact, pod, URI, hub_endpoint=hub.url) == exported
    assert len(hub.repositories["team/bot"]) == 1


def test_an_older_artifact_is_replaced_in_one_commit(hub: hub_uploads.UploadHub, pod: Paths, tmp_path: Path) -> None:
    for weights in (b"first", b"second"):
        artifact = artifacts.sealed_artifact(tmp_path, weights=weights)
        artifacts.run_export(artifact, pod, URI, hub_endpoint=hub.url)
    assert [commit["adapter_model.safetensors"] for commit in hub.repositories["team/bot"]] == [b"first", b"second"]
    assert hub.files("team/bot") == artifacts.contents(artifact)


KILLED = """
import artifacts
from pathlib import Path
from huggingface_hub import hf_api
from tuneloop_trainer.paths import Paths
real = hf_api.HfApi.preupload_lfs_files
def killed(self, **settings):
    real(self, **settings)
    os.kill(os.getpid(), signal.SIGKILL)
hf_api.HfApi.preupload_lfs_files = killed
artifacts.run_export(Path(sys.argv[1]), Paths(Path(sys.argv[2])), sys.argv[3], hub_endpoint=sys.argv[4])
"""


def test_a_kill_before_the_commit_leaves_the_repository_as_it_was(
    hub: hub_uploads.UploadHub, pod: Paths, tmp_path: Path
) -> None:
    artifact = artifacts.sealed_artifact(tmp_path, weights=b"killed")
    artifacts.run_until_killed(KILLED, str(artifact), str(pod.root), URI, hub.url)
    assert hub.files("team/bot") == {}
    assert list(hub.objects.values()) == [b"killed"]
    hub.requests.clear()
    artifacts.run_export(artifact, pod, URI, hub_endpoint=hub.url)
    assert hub.files("team/bot") == artifacts.contents(artifact)
    assert not [path for method, path in hub.requests if method == "PUT"]


@pytest.mark.parametrize(
    ("token", "said", "change"),
    [
        ("hf_wrong", "Invalid credentials", "check token in the Secret"),
        (hub_uploads.READER, "don't have the rights", "may not write there"),
    ],
)
def test_refusals_are_named_and_a_mended_token_heals(
    hub: hub_uploads.UploadHub, pod: Paths, tmp_path: Path, token: str, said: str, change: str
) -> None:
    artifact = artifacts.sealed_artifact(tmp_path)
    artifacts.pod_with(pod.root, token=token)
    with pytest.raises(StageError) as caught:
        artifacts.run_export(artifact, pod, URI, hub_endpoint=hub.url, credentialsSecret="hub")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.EXPORT_FAILED, 42)
    message = caught.value.message
    assert all(part in message for part in (URI, said, change, "Secret hub")), message
    assert token not in message
    artifacts.pod_with(pod.root, token=hub_uploads.TOKEN)
    artifacts.run_export(artifact, pod, URI, hub_endpoint=hub.url)
    assert hub.files("team/bot") == artifacts.contents(artifact)


def test_a_hub_in_trouble_counts_as_a_try(hub: hub_uploads.UploadHub, pod: Paths, tmp_path: Path) -> None:
    hub.broken = "/commit/"
    with pytest.raises(StageError, match="said 500") as caught:
        artifacts.run_export(artifacts.sealed_artifact(tmp_path), pod, URI, hub_endpoint=hub.url)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.EXPORT_FAILED, 75)
    assert hub.files("team/bot") == {}


def test_addresses_are_checked(hub: hub_uploads.UploadHub, pod: Paths, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="loopback") as caught:
        artifacts.run_export(artifacts.sealed_artifact(tmp_path), pod, URI, guard=AddressGuard(), hub_endpoint=hub.url)
    assert caught.value.reason is Reason.URI_REFUSED
    assert hub.requests == []
