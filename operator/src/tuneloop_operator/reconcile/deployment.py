"""Reconcile of one ModelDeployment."""

from tuneloop_operator.kube.resources import Obj
from tuneloop_operator.names import Key
from tuneloop_operator.reconcile.context import Context


class DeploymentReconciler:
    """All ModelDeployments of this process."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def dependents(self, obj: Obj) -> tuple[Key, ...]:
        return ()

    async def reconcile(self, key: Key, obj: Obj) -> float | None:
        return None
