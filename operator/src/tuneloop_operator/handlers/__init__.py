"""kopf decorators and indices only; each body is a line or two. Never decides anything."""
