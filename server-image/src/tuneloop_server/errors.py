"""The one error that ends a start: what was found, what would be right, what to do next. Never carries a token."""


class StartError(Exception):
    """The server cannot start with what it was given; its message is for the person who wrote the resource."""
