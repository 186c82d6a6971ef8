"""The namespace's store: one claim, made once and never changed nor deleted by us. Pure."""

from typing import Any

from tuneloop_core.constants import STORE_CLAIM
from tuneloop_core.settings import StoreSettings
from tuneloop_operator.build.meta import namespace_metadata

Obj = dict[str, Any]


def build_claim(namespace: str, store: StoreSettings) -> Obj:
    """The claim; without a storage class the cluster's default one is used."""
    spec: Obj = {"accessModes": [store.access_mode], "resources": {"requests": {"storage": store.size}}}
    if store.storage_class:
        spec["storageClassName"] = store.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": namespace_metadata(namespace, STORE_CLAIM, "store"),
        "spec": spec,
    }
