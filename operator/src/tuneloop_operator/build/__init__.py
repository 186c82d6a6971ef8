"""Desired objects: (spec, facts, settings) to manifests. Pure: never a client, a clock or kopf."""
