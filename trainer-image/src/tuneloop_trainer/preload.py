"""What a tokenizing worker needs, imported once for all of them; named to the fork server, imported by nobody else.

Hides torch from transformers as the check stage itself does: a tokenizer needs none.
"""

import sys

sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402, F401 - the loading is the use

import tuneloop_trainer.tokenizing  # noqa: E402, F401
