"""Tuneloop: the tuneloop_server package."""
