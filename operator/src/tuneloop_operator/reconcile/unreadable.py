"""Tells what is wrong with a stored resource that this release cannot read, and leaves its children alone."""

from pydantic import ValidationError

from tuneloop_operator.kube.resources import Obj
from tuneloop_operator.policy import unreadable
from tuneloop_operator.policy.transitions import condition_notes
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.status import write_status


async def tell_unreadable(context: Context, obj: Obj, error: ValidationError) -> float:
    """Write it into the conditions once, with an Event; seconds until the next look."""
    status = unreadable.status_of(obj, error, context.now())
    written = await write_status(context.client, obj, status)
    if written is not None:
        context.cache.put(written)
        before, after = unreadable.readable(obj.get("status") or {}), unreadable.readable(status)
        for note in condition_notes(before, after):
            await context.events.tell(obj, note.reason, note.message, warning=note.warning)
    return context.settings.resync_seconds
