"""Where everything lives: one cache folder outside the checkout, and the state of each variant below it."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cache:
    """The folder that outlives clusters: programs, images, build caches."""

    root: Path

    @property
    def programs(self) -> Path:
        """Built programs, one folder per set and version."""
        return self.root / "programs"

    @property
    def go(self) -> Path:
        """Go's build and module caches; dropped once every program is built."""
        return self.root / "go"

    @property
    def containerd(self) -> Path:
        """containerd's content store and snapshots."""
        return self.root / "containerd"

    @property
    def buildah(self) -> Path:
        """buildah's image store."""
        return self.root / "buildah"

    @property
    def uv(self) -> Path:
        """uv's cache, lent to image builds so that a rebuild downloads nothing."""
        return self.root / "uv"

    @property
    def lock(self) -> Path:
        """Held while a cluster is started or stopped."""
        return self.root / "locks" / "cluster"

    @property
    def programs_lock(self) -> Path:
        """Held while programs are built."""
        return self.root / "locks" / "programs"

    @property
    def store_lock(self) -> Path:
        """Held together by all that use buildah's store; alone by who clears up after killed builds."""
        return self.root / "images.lock"

    def image_lock(self, name: str) -> Path:
        """Held while one image is built or imported."""
        return self.root / "locks" / f"image-{name}"

    @property
    def full(self) -> "State":
        """State of the full cluster."""
        return State(self.root / "cluster")

    @property
    def api_only(self) -> "State":
        """State of the variant with only etcd and kube-apiserver."""
        return State(self.root / "apiserver")


@dataclass(frozen=True)
class State:
    """The folder of one running variant: everything here may be deleted once it is down."""

    root: Path

    @property
    def pids(self) -> Path:
        """One file a process."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """One file a process, and the audit log."""
        return self.root / "logs"

    @property
    def pki(self) -> Path:
        """Authorities, certificates and keys."""
        return self.root / "pki"

    @property
    def config(self) -> Path:
        """Configuration files and kubeconfigs of the components."""
        return self.root / "config"

    @property
    def etcd(self) -> Path:
        """etcd's data."""
        return self.root / "etcd"

    @property
    def kubelet(self) -> Path:
        """The kubelet's root: volumes and pods."""
        return self.root / "kubelet"

    @property
    def volumes(self) -> Path:
        """The folders behind PersistentVolumes."""
        return self.root / "volumes"

    @property
    def containerd(self) -> Path:
        """containerd's run-time state: bundles, mounts and sockets of running containers."""
        return self.root / "containerd"

    @property
    def cni(self) -> Path:
        """Addresses that the CNI plugins handed out."""
        return self.root / "cni"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens."""
        return self.root / "containerd.sock"

    @property
    def audit_log(self) -> Path:
        """kube-apiserver's audit log, one JSON object a line."""
        return self.logs / "audit.log"

    @property
    def admin_kubeconfig(self) -> Path:
        """What `kubectl --kubeconfig` wants."""
        return self.root / "admin.kubeconfig"


def cache() -> Cache:
    """The cache of this user: TUNELOOP_CACHE, else ~/.cache/tuneloop."""
    return Cache(Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop").absolute())


def repository() -> Path:
    """The checkout that this package was installed from, which holds the Dockerfiles."""
    return Path(__file__).resolve().parents[3]


def package_file(*parts: str) -> Path:
    """A file that is shipped with this package."""
    return Path(__file__).resolve().parent.joinpath(*parts)
