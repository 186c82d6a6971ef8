"""What a model is for: words, embeddings, or classes. By its own folder, as vLLM 0.32 would judge it; pure.

vLLM's table of architecture suffixes (config/model.py, _SUFFIX_TO_DEFAULTS), and a Sentence Transformer's own file.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Literal

Task = Literal["generate", "embed", "classify"]

# In vLLM's order: the first suffix that fits decides.
_SUFFIXES: Final[tuple[tuple[str, Task], ...]] = (
    ("ForCausalLM", "generate"),
    ("ForConditionalGeneration", "generate"),
    ("ChatModel", "generate"),
    ("LMHeadModel", "generate"),
    ("ForTextEncoding", "embed"),
    ("EmbeddingModel", "embed"),
    ("ForSequenceClassification", "classify"),
    ("ForTokenClassification", "classify"),
    ("ClassificationModel", "classify"),
    ("Model", "embed"),
)

# Path of the engine to the tasks that have it, and to what a model of another task should be asked instead.
PATHS: Final[Mapping[str, frozenset[Task]]] = MappingProxyType(
    {
        "/v1/chat/completions": frozenset({"generate"}),
        "/v1/completions": frozenset({"generate"}),
        "/v1/embeddings": frozenset({"embed"}),
        "/classify": frozenset({"classify"}),
        "/v1/score": frozenset({"embed", "classify"}),
    }
)

_DOES: Final[Mapping[Task, str]] = MappingProxyType(
    {
        "generate": "generates text: ask /v1/chat/completions or /v1/completions",
        "embed": "makes embeddings: ask /v1/embeddings or /v1/score",
        "classify": "gives classes: ask /v1/classify or, with one class, /v1/score",
    }
)


def task_of(architectures: Iterable[str], *, sentence_transformer: bool) -> Task:
    """The task of a model with these ``architectures`` (of config.json); unknown ones are taken to generate."""
    found = [task for name in architectures for suffix, task in _SUFFIXES if name.endswith(suffix)]
    first: Task = found[0] if found else "generate"
    return "embed" if first == "generate" and sentence_transformer else first


def misfit(task: Task, path: str) -> str:
    """Why a model of this task does not answer ``path``; empty where it does, or where the path is of no task."""
    allowed = PATHS.get(path)
    return f"This model {_DOES[task]}." if allowed is not None and task not in allowed else ""


def engine_flags(task: Task, architectures: tuple[str, ...], *, on_cpu: bool) -> list[str]:
    """vLLM's flags for models that do not generate. On CPU they run as written: the image has no C++ compiler."""
    if task == "generate":
        return []
    generator = any(name.endswith("ForCausalLM") for name in architectures)
    convert = ["--convert=embed"] if task == "embed" and generator else []
    return ["--runner=pooling", *convert, *(["--enforce-eager"] if on_cpu else [])]


def classes_to_import(architectures: Iterable[str]) -> list[str]:
    """Names under which vLLM may know the model's class: it serves a decoder with a head for classes by its decoder."""
    return [each for name in architectures for each in dict.fromkeys((name, _decoder(name)))]


def _decoder(name: str) -> str:
    suffix = next((suffix for suffix, task in _SUFFIXES if task == "classify" and name.endswith(suffix)), "")
    return name.removesuffix(suffix) + "ForCausalLM" if suffix else name
