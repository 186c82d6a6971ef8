"""Tuneloop: the tuneloop_localcluster package."""
