"""A real etcd and kube-apiserver, nothing else: no controllers, so nothing is made, collected or deleted for us."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import crd_rules
import pytest
from kubernetes import client, config
from operator_api import Api
from operator_world import World
from rollout_world import Traffic, gateway

from tuneloop_localcluster.paths import cache


def _localcluster(*arguments: str) -> str:
    """Run a command of the local cluster; its words are in the error when it fails."""
    command = [sys.executable, "-m", "tuneloop_localcluster", *arguments, "--api-only"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """The admin's kubeconfig; the API server is started unless it is up, and stays up for the next run."""
    _localcluster("up")
    return Path(_localcluster("kubeconfig"))


class Kubectl:
    """The kubectl that belongs to the API server."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(cache().root / "bin" / "kubectl"), "--kubeconfig", str(kubeconfig)]

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run it and return what it printed; a failure shows its words."""
        command = [*self._command, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)} failed:\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Kubectl:
    """kubectl as the admin."""
    return Kubectl(kubeconfig)


@pytest.fixture(scope="session")
def crds(kubectl: Kubectl) -> list[str]:
    """Both CRDs, applied by the server side and established; their names."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd_rules.ROOT / "crds"))
    names = [f"{plural}.tuneloop.dev" for plural in crd_rules.KINDS]
    kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in names))
    return names


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[client.ApiClient]:
    """The Python client, for many small calls."""
    settings = client.Configuration()
    config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
    with client.ApiClient(settings) as opened:
        yield opened
        opened.rest_client.pool_manager.clear()


@pytest.fixture(scope="session")
def namespace(kubectl: Kubectl) -> str:
    """A namespace of this run; without controllers namespaces never finish deleting, so each run makes its own."""
    name = f"crd-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    return name


@pytest.fixture
def admin(kubeconfig: Path, crds: list[str]) -> Iterator[Api]:
    """The API server as its administrator, over plain HTTP; both CRDs are in place."""
    opened = Api(kubeconfig)
    yield opened
    opened.close()


@pytest.fixture
def world(admin: Api, kubeconfig: Path, tmp_path: Path) -> Iterator[World]:
    """A namespace of the test's own; operators that it starts there end with it."""
    made = World(admin, kubeconfig, tmp_path)
    yield made
    made.close()


@pytest.fixture
def traffic(world: World, tmp_path: Path) -> Iterator[Traffic]:
    """Users of the deployment ``chat`` of that namespace, through a real gateway process."""
    with gateway(world, tmp_path) as made:
        yield made
