"""ModelDeployments and EndpointSlices become the table that every request is looked up in.

Pure: raw JSON in, frozen values out; the same objects give the same table in whatever order they came. Tolerant: what
an older or newer operator left out is taken as absent, and an object that makes no sense is refused alone. Never keeps
what belongs to an endpoint at run time (connections, counts).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from tuneloop_core.api.engine import EngineLoRA
from tuneloop_core.api.formats import parse_duration
from tuneloop_core.constants import SERVER_PORT
from tuneloop_gateway.auth import Key, digest_of_hash
from tuneloop_gateway.measure import Objective
from tuneloop_gateway.ratelimit import Quota

SERVICE_LABEL: Final = "kubernetes.io/service-name"
SERVER_SUFFIX: Final = "-server"
PARTLY_STALLED: Final = frozenset({"RolledBack", "NameTaken"})  # the version before it, or the other names, are served
STALLED_LENGTH: Final = 400
SEQUENCES: Final = "--max-num-seqs="
LORA: Final = EngineLoRA()  # what the API server fills in

Address = tuple[str, int]


@dataclass(frozen=True)
class Share:
    """The share of a name's requests that goes to its new version, as the operator says it."""

    engine_name: str
    revision: str  # rN: these pods are the new version; empty: every pod has it
    weight: int  # percent


@dataclass(frozen=True)
class Deployment:
    """What the gateway needs of one ModelDeployment."""

    namespace: str
    name: str
    created: str  # RFC 3339, sorts as text
    names: tuple[str, ...]  # base first, then the adapters of the spec
    engine_names: Mapping[str, str]  # of those that the engine can be asked for
    messages: Mapping[str, str]  # why an adapter cannot be asked for yet
    keys: tuple[Key, ...] = ()
    start_seconds: float = 0.0  # how long its last replica took to start; 0 if none ever did
    objective: Objective | None = None  # of spec.slo
    stalled: str = ""  # why no replica can come before a person acts
    shares: Mapping[str, Share] = field(default_factory=dict)  # of names with a new version

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.namespace, self.name

    quota: Quota = field(default_factory=Quota)
    sequences: int = 0  # the engine's --max-num-seqs, where the spec sets it
    on_cpu: bool = False  # its replicas have no accelerator
    crowded: bool = False  # it has more adapters than a replica holds: the engine loads them from the store again


@dataclass(frozen=True)
class Slice:
    """One EndpointSlice of a server Service."""

    namespace: str
    service: str
    addresses: tuple[Address, ...]  # ready ones
    revisions: Mapping[Address, str] = field(default_factory=dict)  # rN of each, where its pod's name says it


@dataclass(frozen=True)
class Canary:
    """The new version of a name, and the pods that have it."""

    engine_name: str
    revision: str
    weight: int
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class Route:
    """One name that clients may send as ``model``."""

    deployment: Deployment
    model: str
    engine_name: str  # empty: not servable yet
    message: str
    created: int  # seconds since 1970, for /v1/models
    addresses: tuple[Address, ...]
    revision: str = ""  # the pods' revision, where the version is told by it
    canary: Canary | None = None


@dataclass(frozen=True)
class Namespace:
    """Everything served under one base URL."""

    models: Mapping[str, Route] = field(default_factory=dict)
    keys: tuple[Key, ...] = ()  # of all its deployments
    open: bool = False  # at least one deployment asks for no key


Table = Mapping[str, Namespace]


def parse_deployment(raw: Mapping[str, Any]) -> Deployment:
    """A ModelDeployment as JSON.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not one; the message holds no key and no hash.
    """
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    name = metadata["name"]
    adapters = tuple(adapter["name"] for adapter in spec.get("adapters") or () if adapter["name"] != name)
    states = {state["name"]: state for state in status.get("adapters") or ()}
    served = {model["name"]: model.get("engineName", "") for model in status.get("models") or ()}
    known = {adapter: served.get(adapter) or states.get(adapter, {}).get("engineName", "") for adapter in adapters}
    return Deployment(
        namespace=metadata["namespace"],
        name=name,
        created=metadata.get("creationTimestamp", ""),
        names=(name, *adapters),
        engine_names={name: served.get(name) or name} | {key: value for key, value in known.items() if value},
        messages={adapter: states.get(adapter, {}).get("message", "") for adapter in adapters},
        keys=_keys((spec.get("access") or {}).get("keys") or ()),
        start_seconds=float((status.get("coldStart") or {}).get("seconds") or 0.0),
        objective=_objective(spec.get("slo") or {}),
        stalled=_stalled({found["type"]: found for found in status.get("conditions") or ()}),
        shares={model["name"]: _share(model["canary"]) for model in status.get("models") or () if model.get("canary")},
        quota=_quota((spec.get("access") or {}).get("limits") or {}),
        sequences=_sequences((spec.get("engine") or {}).get("extraArgs") or ()),
        on_cpu=(spec.get("resources") or {}).get("accelerators") == 0,
        crowded=len(adapters) > _cached((spec.get("engine") or {}).get("lora") or {}),
    )


def _objective(slo: Mapping[str, str]) -> Objective | None:
    found = {name: parse_duration(slo[f"{name}P95"]) for name in ("ttft", "tpot") if slo.get(f"{name}P95")}
    return Objective(**found) if found else None


def _stalled(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    """Why no replica can come; empty where one can.

    Stalled also says that an adapter, or a new version, is not as it should be. Then the others are served, so a
    replica can come and is worth waiting for. Where the model stalls for the same (no token reaches either), none can.
    """
    found, reasons = conditions.get("Stalled") or {}, {kind: each.get("reason") for kind, each in conditions.items()}
    reason = found.get("reason", "")
    if found.get("status") != "True" or reason in PARTLY_STALLED:
        return ""
    if reasons.get("AdaptersReady") == reason != reasons.get("ModelFetched"):
        return ""
    return f"{reason}: {found.get('message', '')}"[:STALLED_LENGTH]


def _share(raw: Mapping[str, Any]) -> Share:
    return Share(raw.get("engineName", ""), raw.get("revision", ""), int(raw.get("weight", 0)))


def _keys(raw: Iterable[Mapping[str, Any]]) -> tuple[Key, ...]:
    return tuple(Key(key["name"], digest_of_hash(key["hash"]), frozenset(key.get("models") or ())) for key in raw)


def _quota(raw: Mapping[str, Any]) -> Quota:
    return Quota(int(raw.get("requestsPerMinute") or 0), int(raw.get("tokensPerMinute") or 0))


def _sequences(arguments: Iterable[str]) -> int:
    """Requests that a replica runs at once, if the spec says so; what makes no sense is the engine's matter."""
    values = [text.removeprefix(SEQUENCES) for text in arguments if text.startswith(SEQUENCES)]
    return int(values[-1]) if values and values[-1].isdecimal() else 0


def _cached(lora: Mapping[str, Any]) -> int:
    """Adapters that a replica holds, as the server tells the engine."""
    return max(int(lora.get("maxCached") or LORA.max_cached), int(lora.get("maxActive") or 0))


def parse_slice(raw: Mapping[str, Any]) -> Slice:
    """An EndpointSlice as JSON; ``ready`` left out means ready, as Kubernetes has it.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not one.
    """
    metadata = raw["metadata"]
    port = _port(raw.get("ports") or ())
    service = (metadata.get("labels") or {}).get(SERVICE_LABEL, "")
    ready = [each for each in raw.get("endpoints") or () if _is_ready(each.get("conditions") or {})]
    addresses = tuple((each["addresses"][0], port) for each in ready)
    revisions = dict(zip(addresses, _revisions(service, ready), strict=True))
    return Slice(metadata["namespace"], service, addresses, revisions)


def _revisions(service: str, endpoints: Iterable[Mapping[str, Any]]) -> list[str]:
    """rN of each endpoint: pods are named after the Deployment of their revision."""
    pattern = re.compile(re.escape(service.removesuffix(SERVER_SUFFIX)) + r"-(r\d+)-")
    found = (pattern.match((each.get("targetRef") or {}).get("name", "")) for each in endpoints)
    return [match[1] if match else "" for match in found]


def _port(ports: Iterable[Mapping[str, Any]]) -> int:
    found = [port["port"] for port in ports if port.get("port")]
    return int(found[0]) if found else SERVER_PORT


def _is_ready(conditions: Mapping[str, Any]) -> bool:
    return conditions.get("ready") is not False and not conditions.get("terminating")


def build_table(deployments: Iterable[Deployment], slices: Iterable[Slice], allow_without_keys: bool) -> Table:
    """The whole table. Two owners of one name: the older wins, then the first by name."""
    slices = list(slices)
    addresses = _addresses(slices)
    revisions = {(each.namespace, *address): name for each in slices for address, name in each.revisions.items()}
    found: dict[str, list[Deployment]] = {}
    for deployment in sorted(deployments, key=lambda each: (each.created, each.name)):
        found.setdefault(deployment.namespace, []).append(deployment)
    return {name: _namespace(owners, addresses, revisions, allow_without_keys) for name, owners in found.items()}


def _addresses(slices: Iterable[Slice]) -> dict[tuple[str, str], tuple[Address, ...]]:
    found: dict[tuple[str, str], set[Address]] = {}
    for each in slices:
        found.setdefault((each.namespace, each.service), set()).update(each.addresses)
    return {service: tuple(sorted(addresses)) for service, addresses in found.items()}


def _namespace(
    owners: list[Deployment],
    addresses: Mapping[tuple[str, str], tuple[Address, ...]],
    revisions: Mapping[tuple[str, str, int], str],
    allow_without_keys: bool,
) -> Namespace:
    models: dict[str, Route] = {}
    for owner in owners:
        ready = addresses.get((owner.namespace, owner.name + SERVER_SUFFIX), ())
        for model in owner.names:
            models.setdefault(model, _route(owner, model, ready, revisions))
    keys = tuple(key for owner in owners for key in owner.keys)
    return Namespace(models, keys, open=allow_without_keys and any(not owner.keys for owner in owners))


def _route(
    owner: Deployment, model: str, addresses: tuple[Address, ...], revisions: Mapping[tuple[str, str, int], str]
) -> Route:
    share, canary, stable = owner.shares.get(model), None, addresses
    if share is not None:
        mine = tuple(each for each in addresses if revisions.get((owner.namespace, *each), "") == share.revision)
        taken = mine if share.revision else addresses
        canary = Canary(share.engine_name or owner.engine_names.get(model, ""), share.revision, share.weight, taken)
        stable = tuple(each for each in addresses if each not in mine) if share.revision else addresses
        stable = stable or (taken if share.weight else ())
    engine_name, message = owner.engine_names.get(model, ""), owner.messages.get(model, "")
    return Route(owner, model, engine_name, message, _seconds(owner.created), stable, canary=canary)


def _seconds(created: str) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return 0
