"""Tuneloop: the tuneloop_operator package."""
