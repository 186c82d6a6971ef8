"""Pydantic's JSON schema turned into the structural OpenAPI v3 schema that a CRD takes.

Inlines references, resolves nullable unions, drops what the API server does itself (titles, unknown keys), turns
worded patterns into CEL, and keeps defaults only where they tell a user something. Never knows a kind.
"""

from typing import Any, Final

from pydantic import BaseModel

from tuneloop_core.api.base import VALIDATIONS, cel
from tuneloop_core.api.formats import PATTERN_WORDS

Schema = dict[str, Any]

_DROPPED: Final = ("title", "$defs", "const", PATTERN_WORDS)
_EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})
_ORDER: Final = ("description", "type", "x-kubernetes-int-or-string", "format", "enum", "default")


def structural_schema(model: type[BaseModel]) -> Schema:
    """The whole schema of a model; raises ValueError for what a CRD cannot say."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(schema, schema.get("$defs", {}))


def _convert(node: Schema, defs: dict[str, Schema]) -> Schema:
    """One node, references inlined, children converted."""
    node = _without_patterns(_without_union(_without_reference(node, defs), defs))
    result = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in node:
        result["enum"] = [node["const"]]
    if "properties" in node:
        result["properties"] = {name: _convert(child, defs) for name, child in node["properties"].items()}
    if "items" in node:
        result["items"] = _convert(node["items"], defs)
    _convert_map(result, defs)
    _convert_default(result)
    return {key: result[key] for key in sorted(result, key=_rank)}


def _rank(key: str) -> tuple[int, str]:
    """What people read first stands first."""
    return (_ORDER.index(key), "") if key in _ORDER else (len(_ORDER), key)


def _merge(under: Schema, over: Schema) -> Schema:
    """A definition and what stands beside its reference: the nearer word wins, rules add up."""
    merged = under | over
    if together := [*under.get(VALIDATIONS, []), *over.get(VALIDATIONS, [])]:
        merged[VALIDATIONS] = together
    return merged


def _without_reference(node: Schema, defs: dict[str, Schema]) -> Schema:
    """The node with its ``$ref`` replaced by what it names."""
    while "$ref" in node:
        name = node["$ref"].removeprefix("#/$defs/")
        node = _merge(defs[name], {key: value for key, value in node.items() if key != "$ref"})
    return node


def _without_union(node: Schema, defs: dict[str, Schema]) -> Schema:
    """``X | None`` becomes X (absent is the null of an API), ``int | str`` Kubernetes' int-or-string."""
    if "anyOf" not in node:
        return node
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    choices = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
    if [choice.get("type") for choice in choices] == ["integer", "string"]:
        return rest | {"x-kubernetes-int-or-string": True}
    if len(choices) != 1:
        raise ValueError(f"a CRD has no unions: {node}")
    return _merge(_without_reference(choices[0], defs), rest)


def _without_patterns(node: Schema) -> Schema:
    """A pattern with words becomes a CEL rule, whose message a user can act on."""
    if "pattern" not in node:
        return node
    if PATTERN_WORDS not in node:
        raise ValueError(f"a pattern needs words that say what is allowed: {node}")
    rule = cel(f"self.matches('{node['pattern']}')", node[PATTERN_WORDS])
    rest = {key: value for key, value in node.items() if key not in {"pattern", VALIDATIONS}}
    return rest | {VALIDATIONS: [rule, *node.get(VALIDATIONS, [])]}


def _convert_map(result: Schema, defs: dict[str, Schema]) -> None:
    """``additionalProperties`` is the values' schema of a map; ``false`` is the API server's own business."""
    values = result.pop("additionalProperties", False)
    if isinstance(values, dict):
        result["additionalProperties"] = _convert(values, defs)


def _convert_default(result: Schema) -> None:
    """A block's default is spelt out, since CEL checks it before nested defaults are filled in.

    There is none for empty text, list, map or null: absence says that, and stored objects stay short.
    """
    default = result.pop("default", None)
    if isinstance(default, dict) and "properties" in result:
        result["default"] = _compact(default)
    elif default not in _EMPTY:
        result["default"] = default


def _compact(block: dict[str, Any]) -> dict[str, Any]:
    """The block without what is empty, all the way down."""
    inner = {key: _compact(value) if isinstance(value, dict) else value for key, value in block.items()}
    return {key: value for key, value in inner.items() if value not in _EMPTY}
