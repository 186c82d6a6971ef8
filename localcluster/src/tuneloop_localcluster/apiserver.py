"""etcd and kube-apiserver: what both variants are made of. Pure: commands and files as values."""

from dataclasses import dataclass
from pathlib import Path

from tuneloop_localcluster.paths import State
from tuneloop_localcluster.pki import pair

AUDIT_POLICY: dict[str, object] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
# Tokens of service accounts are checked offline by name of issuer; a cluster's own DNS name is what others use too.
ISSUER = "https://kubernetes.default.svc.cluster.local"

_ALONE = [
    # Without controllers no namespace ever gets its `default` service account, which would refuse every pod.
    "--disable-admission-plugins=ServiceAccount",
    # The endpoint of Service `kubernetes` would be a loopback address, which is refused.
    "--endpoint-reconciler-type=none",
]


@dataclass(frozen=True)
class ControlPlane:
    """Where one variant's etcd and kube-apiserver listen, and where their files are."""

    state: State
    address: str
    port: int
    etcd_port: int
    service_range: str
    alone: bool = False  # no controllers beside it

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://{self.address}:{self.port}"


def etcd_command(plane: ControlPlane, etcd: str | Path) -> list[str]:
    """etcd on loopback, with client certificates: nobody else on the machine may read the cluster's secrets."""
    client = f"https://127.0.0.1:{plane.etcd_port}"
    peer = f"http://127.0.0.1:{plane.etcd_port + 1}"
    server = pair(plane.state.pki, "etcd")
    return [
        str(etcd),
        "--name=tuneloop",
        f"--data-dir={plane.state.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=tuneloop={peer}",
        f"--cert-file={server.certificate}",
        f"--key-file={server.key}",
        f"--trusted-ca-file={pair(plane.state.pki, 'etcd-ca').certificate}",
        "--client-cert-auth",
        "--auto-compaction-retention=10m",
        "--quota-backend-bytes=4294967296",
        "--logger=zap",
        "--log-level=warn",
    ]


def apiserver_command(plane: ControlPlane, program: Path) -> list[str]:
    """kube-apiserver with its default admission (PodSecurity among it), RBAC, an audit log and its own token issuer."""
    state = plane.state
    files = {
        "tls": pair(state.pki, "kube-apiserver"),
        "etcd": pair(state.pki, "etcd-client"),
        "kubelet": pair(state.pki, "kubelet-client"),
        "proxy": pair(state.pki, "front-proxy-client"),
    }
    service_account_key = state.pki / "service-accounts.key"
    authority = pair(state.pki, "ca").certificate
    return [
        str(program),
        f"--bind-address={plane.address}",
        f"--advertise-address={plane.address}",
        f"--secure-port={plane.port}",
        f"--tls-cert-file={files['tls'].certificate}",
        f"--tls-private-key-file={files['tls'].key}",
        f"--client-ca-file={authority}",
        f"--etcd-servers=https://127.0.0.1:{plane.etcd_port}",
        f"--etcd-cafile={pair(state.pki, 'etcd-ca').certificate}",
        f"--etcd-certfile={files['etcd'].certificate}",
        f"--etcd-keyfile={files['etcd'].key}",
        f"--kubelet-certificate-authority={authority}",
        f"--kubelet-client-certificate={files['kubelet'].certificate}",
        f"--kubelet-client-key={files['kubelet'].key}",
        "--kubelet-preferred-address-types=InternalIP",
        # An authority of its own: with the clients' authority every client could name any user in a header.
        f"--requestheader-client-ca-file={pair(state.pki, 'front-proxy-ca').certificate}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={files['proxy'].certificate}",
        f"--proxy-client-key-file={files['proxy'].key}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={plane.service_range}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={service_account_key}",
        f"--service-account-signing-key-file={service_account_key}",
        f"--audit-policy-file={state.config / 'audit-policy.yaml'}",
        f"--audit-log-path={state.audit_log}",
        "--audit-log-maxsize=200",
        "--audit-log-maxbackup=2",
        "--profiling=false",
        "--event-ttl=2h",
        *(_ALONE if plane.alone else []),
    ]
