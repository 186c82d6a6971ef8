"""The demo's one error: a sentence for the person at the terminal. Never holds a key or a token."""


class DemoError(Exception):
    """The demo cannot go on; the message says what was found and what to do next."""
