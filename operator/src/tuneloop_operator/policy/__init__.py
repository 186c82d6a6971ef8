"""Ordered checks: facts to condition, reason, message. Pure: never a client, a clock or kopf."""
