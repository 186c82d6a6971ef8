"""What this release does not act on yet, refused in words: nothing that a user writes is ever silently ignored.

All such rules live here, so that the work which brings a feature removes exactly its rule. They stand on the spec
with a field path, since most look at fields that are defaulted. Never holds a rule that stays for good.
"""

from typing import Final

from tuneloop_core.api.base import cel


def _later(rule: str, words: str, path: str) -> dict[str, str]:
    """A rule of this release; the words say what works now."""
    return cel(rule, f"not in this release: {words}", path)


FINETUNEJOB_LATER: Final = (
    _later(
        "!has(self.dataset.serviceAccountName) || self.dataset.serviceAccountName == ''",
        "workload identity; leave serviceAccountName out and use credentialsSecret",
        ".dataset.serviceAccountName",
    ),
)
