"""Tuneloop: the tuneloop_gateway package."""
