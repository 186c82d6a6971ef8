"""What users may say about the pods we make: a closed struct, not a pod template.

A template would blow up the CRD and let whoever edits the resource mount anything; here are only sizes, places and
labels. Never holds a volume, a command, an environment or a security context.
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.affinity import Affinity
from tuneloop_core.api.base import SpecModel, cel, rules
from tuneloop_core.api.formats import Quantity, ResourceName

_LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        json_schema_extra=rules(
            cel(
                "self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')",
                "a label's value is letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
            )
        ),
    ),
]
_AnnotationValue = Annotated[str, Field(max_length=1024)]

_RESERVED_PREFIXES = (
    "tuneloop.dev/",
    "kopf.dev/",
    "kopf.zalando.org/",
    "kueue.x-k8s.io/",
    "batch.kubernetes.io/",
    "container.apparmor.security.beta.kubernetes.io/",
    "k8s.v1.cni.cncf.io/",
)
_INJECTING_PREFIXES = (
    # Injectors of secrets: whoever may only write a FineTuneJob would read what the injector's own rights open.
    "vault.hashicorp.com/",
    "vault.security.banzaicloud.io/",
    "secrets.hashicorp.com/",
    "operator.1password.io/",
    "conjur.org/",
    # Cloud identities by annotation or label: kube2iam and kiam, EKS, Azure, Google.
    "iam.amazonaws.com/",
    "eks.amazonaws.com/",
    "azure.workload.identity/",
    "aadpodidbinding",
    "iam.gke.io/",
    # Sidecars that hold a token of their own or mount what they are told; sidecar.istio.io/inject is free, to stay out.
    "dapr.io/",
    "consul.hashicorp.com/",
    "sidecar.istio.io/userVolume",
    # Networks and addresses beside those that the network policies know.
    "v1.multus-cni.io/",
    "cni.projectcalico.org/",
    "k8s.ovn.org/",
    "ovn.kubernetes.io/",
    # What container runtimes obey: devices, mounts and cgroups of the node, the hypervisor.
    "cdi.k8s.io/",
    "devices.nri.io/",
    "mounts.nri.io/",
    "io.kubernetes.cri-o.",
    "io.katacontainers.",
)
"""On a pod these bring what no pod of ours may have; as a node's labels some of them are usual."""
_RESERVED_KEYS = (
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/component",
    "job-name",
    "controller-uid",
    "pod-template-hash",
)
_RESERVED_WORDS = (
    "keys of tuneloop.dev, kopf.dev, kueue.x-k8s.io, batch.kubernetes.io, AppArmor and CNI networks, "
    "app.kubernetes.io/managed-by and /component are set by Tuneloop and the cluster: use keys of your own"
)
_INJECTING_WORDS = (
    "keys that give a pod secrets, a cloud identity, a sidecar, another network or devices of the node (such as "
    "vault.hashicorp.com/, iam.amazonaws.com/, azure.workload.identity/, cdi.k8s.io/) are refused: name credentials in "
    "credentialsSecret, accelerators in spec.resources"
)


def _no_reserved_keys() -> dict[str, str]:
    """CEL on a map: no key that selects, owns or loosens a pod."""
    keys = ", ".join(f"'{key}'" for key in _RESERVED_KEYS)
    return cel(
        f"self.all(k, size(k) <= 317 && {_begins_with_none(_RESERVED_PREFIXES)} && !(k in [{keys}]))", _RESERVED_WORDS
    )


def _no_injection() -> dict[str, str]:
    """CEL on a map: no key by which something else in the cluster changes the pod."""
    return cel(f"self.all(k, {_begins_with_none(_INJECTING_PREFIXES)})", _INJECTING_WORDS)


def _begins_with_none(prefixes: tuple[str, ...]) -> str:
    return " && ".join(f"!k.startsWith('{prefix}')" for prefix in prefixes)


def _is_quantity(value: str) -> str:
    """CEL: the int-or-string is a quantity."""
    return f"(type({value}) == int || isQuantity({value}))"


def _quantity(value: str) -> str:
    """CEL: the int-or-string as a quantity; ``string()`` would do, but its cost has no bound."""
    return f"(type({value}) == int ? quantity('0').add({value}) : quantity({value}))"


_AMOUNTS_RULE = cel(
    f"self.all(k, {_is_quantity('self[k]')} && sign({_quantity('self[k]')}) >= 0)",
    'must be non-negative quantities, such as cpu: "4", cpu: 500m or memory: 16Gi',
)
_NAMES_RULE = cel(
    "self.all(k, k in ['cpu', 'memory', 'ephemeral-storage'])",
    "only cpu, memory and ephemeral-storage belong here; accelerators are given by spec.resources.accelerators",
)


class ResourceRequirements(SpecModel):
    """Requests and limits of the main container, as core/v1 has them; accelerators are set by ``resources``."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || "
                f"!{_is_quantity('self.requests[k]')} || !{_is_quantity('self.limits[k]')} || "
                f"{_quantity('self.requests[k]')}.compareTo({_quantity('self.limits[k]')}) <= 0)",
                "each request must be at most its limit",
            )
        )
    }

    requests: dict[str, Quantity] = Field(
        default={},
        max_length=3,
        description='What the scheduler reserves, such as {cpu: "4", memory: 16Gi}.',
        json_schema_extra=rules(_NAMES_RULE, _AMOUNTS_RULE),
    )
    limits: dict[str, Quantity] = Field(
        default={},
        max_length=3,
        description="What the container may use at most, such as {memory: 16Gi}.",
        json_schema_extra=rules(_NAMES_RULE, _AMOUNTS_RULE),
    )


class Toleration(SpecModel):
    """core/v1 Toleration: a node's taint that the pod accepts."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.operator == 'Equal' ? has(self.key) && self.key != '' : !has(self.value) || self.value == ''",
                "a toleration is a key with operator Equal and a value, or operator Exists without a value",
            ),
            cel(
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds goes with effect NoExecute only",
            ),
        )
    }

    key: str = Field(default="", max_length=317, description="The taint's key; empty with Exists means every taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Exists ignores the value.")
    value: str = Field(default="", max_length=63, description="The taint's value, for Equal.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        default="", description="The taint's effect; empty means every effect."
    )
    toleration_seconds: int | None = Field(
        default=None,
        ge=0,
        le=86400,
        description="How long a NoExecute taint is tolerated, seconds; absent is for ever.",
    )


class LocalObjectReference(SpecModel):
    """An object of this namespace, by name."""

    name: ResourceName = Field(min_length=1, description="The object's name.")


class PodSettings(SpecModel):
    """Sizes, place and labels of the pods; everything else about them is Tuneloop's."""

    resources: ResourceRequirements = Field(
        default=ResourceRequirements(), description="CPU and memory of the main container."
    )
    node_selector: dict[str, _LabelValue] = Field(
        default={},
        max_length=16,
        description="Labels that the node must have.",
        json_schema_extra=rules(_no_reserved_keys()),
    )
    tolerations: list[Toleration] = Field(default=[], max_length=16, description="Taints that the pods accept.")
    affinity: Affinity | None = Field(default=None, description="Which nodes, and near to or away from which pods.")
    priority_class_name: ResourceName = Field(default="", description="PriorityClass of the pods.")
    runtime_class_name: ResourceName = Field(default="", description="RuntimeClass of the pods, such as nvidia.")
    image_pull_secrets: list[LocalObjectReference] = Field(
        default=[], max_length=8, description="Secrets with registry credentials, besides those of the chart."
    )
    labels: dict[str, _LabelValue] = Field(
        default={},
        max_length=32,
        description="Further labels of the pods.",
        json_schema_extra=rules(_no_reserved_keys(), _no_injection()),
    )
    annotations: dict[str, _AnnotationValue] = Field(
        default={},
        max_length=32,
        description="Further annotations of the pods.",
        json_schema_extra=rules(_no_reserved_keys(), _no_injection()),
    )
