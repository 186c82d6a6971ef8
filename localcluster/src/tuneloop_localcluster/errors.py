"""The one error that the command line prints as a sentence instead of a traceback."""


class ClusterError(Exception):
    """Something a person can mend: the message says what was found and what to do next."""
