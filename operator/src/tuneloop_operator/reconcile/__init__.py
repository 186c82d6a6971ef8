"""Gather facts, decide, act on the difference, write the status once. Never imports kopf or an HTTP client."""
