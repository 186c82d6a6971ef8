"""Values read out of one record, and the words for what is wrong with them. Knows no format and no file."""

import json
from collections.abc import Iterable
from typing import Any


class BadRowError(ValueError):
    """A row that cannot be trained on; the message says what was found."""


def text(record: dict[str, Any], key: str, where: str = "") -> str:
    """A string that may be empty; raises ``BadRowError``."""
    if key not in record:
        raise BadRowError(lacks(record, where + key))
    value = record[key]
    if not isinstance(value, str):
        raise BadRowError(f"{where}{key} is {kind(value)}, not a string")
    return _encodable(value, where + key)


def filled(record: dict[str, Any], key: str, where: str = "") -> str:
    """A string with more than white space in it; raises ``BadRowError``."""
    value = text(record, key, where)
    if not value.strip():
        raise BadRowError(f"{where}{key} is empty")
    return value


def flag(record: dict[str, Any], key: str) -> bool:
    """A boolean, also as CSV writes one: true, false, 1 or 0; raises ``BadRowError``."""
    if key not in record:
        raise BadRowError(lacks(record, key))
    value = record[key]
    known = {"true": True, "1": True, "false": False, "0": False}
    if (word := str(value).strip().lower()) in known and isinstance(value, bool | int | str):
        return known[word]
    shown = f"{value!r:.40}" if isinstance(value, str | int | float) else kind(value)
    raise BadRowError(f"{key} is {shown}, not true or false")


def class_name(record: dict[str, Any], key: str) -> str:
    """The name of a class: a string, a whole number or a boolean; raises ``BadRowError``."""
    value = record.get(key)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # pandas writes whole numbers so where some are missing
        return str(int(value))
    if key in record and not isinstance(value, str):
        raise BadRowError(f"{key} is {kind(value)}, not the name or number of a class")
    return filled(record, key).strip()


def unfolded(value: Any) -> Any:
    """A list or object that a table had to keep as JSON text; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        return value


def encodable(value: Any, where: str) -> None:
    """Raise ``BadRowError`` for what JSON can hold and UTF-8 cannot, anywhere in a value."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRowError(f"{where} holds half a surrogate pair") from None
    except TypeError as error:
        raise BadRowError(f"{where} holds what JSON cannot say: {error}") from None


def lacks(record: dict[str, Any], key: str) -> str:
    """Words: what a record has, and that ``key`` is not among it."""
    return f"has {names(record)} but no {key}"


def kind(value: Any) -> str:
    """What a value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def names(keys: Iterable[str]) -> str:
    """The first six keys, sorted."""
    found = sorted(map(str, keys))
    return ", ".join(found[:6]) + (", ..." if len(found) > 6 else "") if found else "no columns"


def _encodable(value: str, where: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(f"{where} holds {_unencodable(value, error.start)}") from None
    return value


def _unencodable(value: str, at: int) -> str:
    code = ord(value[at])
    if 0xDC80 <= code <= 0xDCFF:  # how a reader of text passes on a byte that is not UTF-8
        return f"byte 0x{code - 0xDC00:02x} at character {at + 1}, which is not UTF-8"
    return f"half a surrogate pair at character {at + 1}"
