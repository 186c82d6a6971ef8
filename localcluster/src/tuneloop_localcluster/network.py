"""The cluster's network namespace and its one link to the machine.

Nothing of the cluster reaches the machine's own network: its iptables rules, forwarding and sysctls are those of the
namespace. The machine gets one interface and two routes, which vanish together.
"""

from pathlib import Path

from tuneloop_localcluster.nodeconfig import (
    HOST_ADDRESS,
    LINK_PREFIX,
    NAMESPACE,
    NODE_ADDRESS,
    POD_RANGE,
    SERVICE_RANGE,
)
from tuneloop_localcluster.shell import run, try_run

HOST_LINK = "tuneloop0"
_NODE_LINK = "uplink0"
NAMESPACE_FILE = Path("/run/netns") / NAMESPACE
# nsenter, not `ip netns exec`: that remounts /sys, which hides the cgroups from the kubelet.
ENTER = ["nsenter", f"--net={NAMESPACE_FILE}", "--"]

_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/route_localnet": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}


def exists() -> bool:
    """Whether the namespace and the link are there."""
    return NAMESPACE_FILE.exists() and Path("/sys/class/net", HOST_LINK).exists()


def create() -> None:
    """Make the namespace, the link, its addresses and the machine's routes to pods and services."""
    run(["ip", "netns", "add", NAMESPACE])
    run(["ip", "link", "add", HOST_LINK, "type", "veth", "peer", "name", _NODE_LINK, "netns", NAMESPACE])
    run(["ip", "addr", "add", f"{HOST_ADDRESS}/{LINK_PREFIX}", "dev", HOST_LINK])
    run(["ip", "link", "set", HOST_LINK, "up"])
    inside = ["ip", "-n", NAMESPACE]
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "addr", "add", f"{NODE_ADDRESS}/{LINK_PREFIX}", "dev", _NODE_LINK])
    run([*inside, "link", "set", _NODE_LINK, "up"])
    for target in (POD_RANGE, SERVICE_RANGE):
        run(["ip", "route", "add", target, "via", NODE_ADDRESS])
    # Packets to anywhere else are refused at once; without this route they would vanish, and callers wait.
    run([*inside, "route", "add", "unreachable", "default"])
    writes = "; ".join(f"echo {value} > /proc/sys/{name}" for name, value in _SYSCTLS.items())
    run([*ENTER, "sh", "-e", "-c", writes])


def delete() -> None:
    """Delete link, routes and namespace, as far as they are there."""
    if Path("/sys/class/net", HOST_LINK).exists():
        run(["ip", "link", "del", HOST_LINK])
    if NAMESPACE_FILE.exists() and not try_run(["ip", "netns", "del", NAMESPACE]):
        # After a reboot only an empty file is left of it.
        NAMESPACE_FILE.unlink(missing_ok=True)
    folder = NAMESPACE_FILE.parent
    if folder.is_mount() and not any(folder.iterdir()):
        # `ip netns add` mounts the folder on itself, and again when it next needs it.
        run(["umount", folder])
