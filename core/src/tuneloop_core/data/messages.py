"""Conversations: messages with their tool calls, and the tools beside them, as chat templates take them.

One shape comes out (OpenAI's), whatever of its spellings went in. Never renders and never judges who speaks when:
that is the template's business.
"""

from collections.abc import Iterable
from typing import Any

from tuneloop_core.data.fields import BadRowError, encodable, filled, kind, lacks, names, text, unfolded

ROLES = ("system", "developer", "user", "assistant", "tool")
EXTRA_KEYS = frozenset({"tool_calls", "tool_call_id", "name"})

Message = dict[str, Any]  # role, content; tool_calls, tool_call_id, name where a tool is used
Tool = dict[str, Any]  # a function as JSON schema


def parse_messages(record: dict[str, Any], key: str) -> list[Message]:
    """The messages under ``key``, at least one; raises ``BadRowError``."""
    messages = unfolded(record.get(key))
    if not isinstance(messages, list):
        raise BadRowError(f"{lacks(record, key)}, a list of messages")
    if not messages:
        raise BadRowError(f"{key} is empty")
    return [_message(f"{key}[{index}]", message) for index, message in enumerate(messages)]


def parse_tools(record: dict[str, Any]) -> list[Tool]:
    """The tools of a row, none where it has none; raises ``BadRowError``."""
    tools = unfolded(record.get("tools"))
    if tools is None or tools == "":
        return []
    if not isinstance(tools, list):
        raise BadRowError(f"tools is {kind(tools)}, not a list of functions")
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRowError(f'tools[{index}] is no function: {{"type": "function", "function": {{"name": ...}}}}')
    encodable(tools, "tools")
    return tools


def says(messages: Iterable[Message]) -> str:
    """What users ask in a conversation: rows that say the same are never on both sides of the split."""
    return "\x00".join(message["content"] for message in messages if message["role"] == "user")


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise BadRowError(f"{where} is {kind(message)}, not an object with role and content")
    present = {key: value for key, value in message.items() if value is not None or key == "content"}
    if extra := set(present) - {"role", "content"} - EXTRA_KEYS:
        allowed = ", ".join(("role", "content", *sorted(EXTRA_KEYS)))
        raise BadRowError(f"{where} has {names(extra)}; only {allowed} are read: remove the rest")
    role = present.get("role")
    if role not in ROLES:
        raise BadRowError(f"{where}.role is {role!r:.40}, not one of {', '.join(ROLES)}")
    calls = _calls(where, role, present)
    content = _content(where, role, present, bool(calls))
    named = {key: filled(present, key, where + ".") for key in ("tool_call_id", "name") if present.get(key)}
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {}), **named}


def _content(where: str, role: str, message: Message, has_calls: bool) -> str:
    if has_calls and message.get("content") is None:
        return ""
    content = text(message, "content", where + ".")
    if role == "assistant" and not content.strip() and not has_calls:
        raise BadRowError(f"{where}.content is empty: an assistant's message is what is trained")
    return content


def _calls(where: str, role: str, message: Message) -> list[dict[str, Any]]:
    calls = unfolded(message.get("tool_calls"))
    if not calls:
        return []
    if role != "assistant":
        raise BadRowError(f"{where} has tool_calls, but its role is {role}: only an assistant calls tools")
    if not isinstance(calls, list):
        raise BadRowError(f"{where}.tool_calls is {kind(calls)}, not a list of calls")
    return [_call(f"{where}.tool_calls[{index}]", call) for index, call in enumerate(calls)]


def _call(where: str, call: Any) -> dict[str, Any]:
    function = unfolded(call.get("function", call)) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise BadRowError(f'{where} is no call: {{"type": "function", "function": {{"name": ..., "arguments": ...}}}}')
    arguments = unfolded(function.get("arguments"))
    arguments = {} if arguments is None or arguments == "" else arguments
    if not isinstance(arguments, dict):
        raise BadRowError(f"{where} has arguments that are {kind(arguments)}, not an object")
    encodable(arguments, f"{where}.arguments")
    identity = {"id": filled(call, "id", where + ".")} if call.get("id") else {}
    name = filled(function, "name", where + ".")
    return {"type": "function", **identity, "function": {"name": name, "arguments": arguments}}
