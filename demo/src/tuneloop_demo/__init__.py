"""Tuneloop: the tuneloop_demo package."""
