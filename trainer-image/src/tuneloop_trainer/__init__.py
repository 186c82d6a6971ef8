"""Tuneloop: the tuneloop_trainer package."""
