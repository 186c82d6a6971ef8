"""Commands and files of the components: what each must say, and what none may contradict."""

import ipaddress
import json
import tomllib
from pathlib import Path

import pytest
import yaml

from tuneloop_localcluster import apionly, cluster, components, fresh, kubeconfig, nodeconfig, objects
from tuneloop_localcluster.apiserver import apiserver_command, etcd_command
from tuneloop_localcluster.paths import Cache

CACHE = Cache(Path("/cache"))
FULL = components.control_plane(CACHE)
ALONE = apionly.plane(CACHE)


def flags(command: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").partition("=")[::2] for word in command[1:])


def test_apiserver_keeps_its_authorities_apart() -> None:
    """With the clients' authority as the front proxy's, every client could name any user in a header."""
    said = flags(apiserver_command(FULL, Path("/bin/kube-apiserver")))
    authorities = [said["client-ca-file"], said["requestheader-client-ca-file"], said["etcd-cafile"]]
    assert len(set(authorities)) == 3


def test_apiserver_of_the_full_cluster() -> None:
    said = flags(apiserver_command(FULL, Path("/bin/kube-apiserver")))
    assert said["advertise-address"] == "198.18.0.2"
    assert said["kubelet-preferred-address-types"] == "InternalIP"
    assert said["authorization-mode"] == "Node,RBAC"
    assert said["audit-log-path"] == "/cache/cluster/logs/audit.log"
    assert "disable-admission-plugins" not in said


def test_apiserver_alone_takes_pods_without_service_accounts() -> None:
    said = flags(apiserver_command(ALONE, Path("/bin/kube-apiserver")))
    assert said["bind-address"] == "127.0.0.1"
    assert said["disable-admission-plugins"] == "ServiceAccount"
    assert said["endpoint-reconciler-type"] == "none"


def test_etcd_answers_only_to_certificates_of_its_authority() -> None:
    said = flags(etcd_command(FULL, "etcd"))
    assert "client-cert-auth" in said
    assert said["listen-client-urls"] == "https://127.0.0.1:2379"
    assert said["listen-peer-urls"] == "http://127.0.0.1:2380"


def test_the_variants_share_nothing() -> None:
    assert FULL.state.root != ALONE.state.root
    assert not {FULL.port, FULL.etcd_port, FULL.etcd_port + 1} & {ALONE.port, ALONE.etcd_port, ALONE.etcd_port + 1}


@pytest.mark.parametrize("name", components.AFTER_APISERVER)
def test_every_component_gets_its_own_identity(name: str) -> None:
    command = components.command(name, CACHE, lambda program: Path("/programs") / program)
    assert command[0] == f"/programs/{name}"
    assert name in {client.name for client in components.CLIENTS}
    assert f"/cache/cluster/config/{name}.kubeconfig" in " ".join([*command, *fresh.files(CACHE).values()])


def test_everything_that_is_started_is_ended() -> None:
    assert set(cluster.NAMES) == {components.CONTAINERD, *components.END_ORDER}
    assert components.END_ORDER.index("kubelet") < components.END_ORDER.index("kube-apiserver")
    assert components.END_ORDER[-1] == "etcd"


def test_no_two_ranges_overlap() -> None:
    link = ipaddress.ip_network(f"{nodeconfig.HOST_ADDRESS}/{nodeconfig.LINK_PREFIX}", strict=False)
    ranges = [link, *map(ipaddress.ip_network, (nodeconfig.POD_RANGE, nodeconfig.SERVICE_RANGE, ALONE.service_range))]
    assert not any(a.overlaps(b) for i, a in enumerate(ranges) for b in ranges[i + 1 :])
    assert ipaddress.ip_address(nodeconfig.DNS_ADDRESS) in ipaddress.ip_network(nodeconfig.SERVICE_RANGE)
    assert ipaddress.ip_address(nodeconfig.NODE_ADDRESS) in link


def test_containerd_configuration() -> None:
    said = tomllib.loads(nodeconfig.containerd(CACHE))
    cri = said["plugins"]["io.containerd.grpc.v1.cri"]
    assert said["root"] == "/cache/containerd"
    assert said["state"] == "/cache/cluster/containerd"
    assert said["grpc"]["address"] == "/cache/cluster/containerd.sock"
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True
    assert cri["sandbox_image"] == nodeconfig.PAUSE_IMAGE
    assert cri["containerd"]["runtimes"]["runc"]["options"] == {"SystemdCgroup": False, "Root": "/cache/cluster/runc"}


def test_kubelet_configuration() -> None:
    said = nodeconfig.kubelet(CACHE)
    assert said["failCgroupV1"] is False
    assert said["cgroupDriver"] == "cgroupfs"
    assert said["cgroupRoot"] == "/tuneloop"
    assert said["authentication"]["anonymous"] == {"enabled": False}
    assert said["imageGCHighThresholdPercent"] == 100, "100 switches image collection off"
    assert said["serializeImagePulls"] is False


def test_cni_names_one_network_and_one_default_route() -> None:
    said = json.loads(nodeconfig.cni(Path("/state/cni")))
    ptp = said["plugins"][0]
    assert ptp["type"] == "ptp"
    assert ptp["ipam"]["ranges"] == [[{"subnet": nodeconfig.POD_RANGE}]]
    assert ptp["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}]


def test_configuration_files_parse() -> None:
    for path, content in fresh.files(CACHE).items():
        match path.suffix:
            case ".yaml":
                assert yaml.safe_load(content)["apiVersion"]
            case ".toml":
                assert tomllib.loads(content)
            case ".conflist":
                assert json.loads(content)
            case _:
                assert content.endswith("\n")


def test_the_default_storage_class_waits_and_deletes() -> None:
    said = objects.storage_class()
    assert said["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}
    assert said["volumeBindingMode"] == "WaitForFirstConsumer"
    assert said["reclaimPolicy"] == "Delete"


def test_dns_service_points_at_the_node() -> None:
    service, endpoints = objects.dns_service()
    assert service["spec"]["clusterIP"] == nodeconfig.DNS_ADDRESS
    assert "selector" not in service["spec"]
    assert endpoints["endpoints"][0]["addresses"] == [nodeconfig.NODE_ADDRESS]
    assert endpoints["metadata"]["labels"] == {"kubernetes.io/service-name": service["metadata"]["name"]}


def test_no_component_may_touch_secrets() -> None:
    roles = [item for item in objects.bootstrap() if item["kind"] == "ClusterRole"]
    assert len(roles) == 2
    assert not any("secrets" in rule["resources"] for role in roles for rule in role["rules"])
    users = {client.user for client in components.CLIENTS}
    bindings = [item for item in objects.bootstrap() if item["kind"] == "ClusterRoleBinding"]
    assert {binding["subjects"][0]["name"] for binding in bindings} <= users


def test_kubeconfig_is_whole() -> None:
    said = yaml.safe_load(kubeconfig.render("https://h:1", b"ca", b"crt", b"key", name="n"))
    assert said["current-context"] == "n"
    assert said["clusters"][0]["cluster"] == {"server": "https://h:1", "certificate-authority-data": "Y2E="}
    assert said["users"][0]["user"] == {"client-certificate-data": "Y3J0", "client-key-data": "a2V5"}
    assert said["contexts"][0]["context"] == {"cluster": "n", "user": "n"}


def test_another_cache_listens_on_ports_of_its_own() -> None:
    """Two checkouts with caches of their own run their tests side by side."""
    mine, other = apionly.plane(Cache(Path.home() / ".cache" / "tuneloop")), apionly.plane(Cache(Path("/other")))
    assert (mine.port, mine.etcd_port) == (26443, 22379)
    ports = [mine.port, mine.etcd_port, mine.etcd_port + 1, other.port, other.etcd_port, other.etcd_port + 1]
    assert len(set(ports)) == len(ports)
    assert max(ports) < 32768, "the kernel hands out ports from there"
