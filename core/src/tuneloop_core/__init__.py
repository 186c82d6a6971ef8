"""Tuneloop: the tuneloop_core package."""
