"""The values in a row: each function returns what one stands for, or says what it found.

What is wrong is an `InputError` that names the field, what was found and what was expected.
"""

import json
from typing import TypedDict

from minibule.errors import InputError
from minibule.wording import Number


class Message(TypedDict):
    """One turn of a chat. The role is system, user or assistant."""

    role: str
    content: str


Prompt = str | list[Message]  # a string is one user turn


def described(value: object) -> str:
    """What stands in the file, short and in ASCII: `"abc"`, `2.0`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:36]}..."


def wrong(where: str, value: object, expected: str) -> InputError:
    return InputError(f"{where}: found {described(value)}, expected {expected}")


def text_of(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise wrong(where, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character; no tokenizer takes it
        half = f"the lone surrogate \\u{ord(value[error.start]):04x}"
        at = f"character {error.start + 1:,}"
        raise InputError(f"{where}: found {half} at {at}, expected Unicode text") from None
    return value


def whole(value: object, where: str, least: int = 1) -> int:
    expected = Number(int, least, 2**31 - 1)
    try:
        return int(expected.check(value))
    except ValueError:
        raise wrong(where, value, str(expected)) from None


def boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(where, value, "true or false")
    return value


def _items(value: object, where: str, expected: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise wrong(where, value, expected)
    return value


_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def _message(value: object, where: str) -> Message:
    """{"role": "user", "content": "Hi"} or ShareGPT's {"from": "human", "value": "Hi"}."""
    if not isinstance(value, dict):
        raise wrong(where, value, "a message with role and content")
    by, says = ("from", "value") if "from" in value else ("role", "content")
    role = value.get(by)
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong(f"{where}.{by}", role, f"one of {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": text_of(value.get(says), f"{where}.{says}")}


def messages_of(value: object, where: str, expected: str = "a list of messages") -> list[Message]:
    items = _items(value, where, expected)
    return [_message(item, f"{where}[{i}]") for i, item in enumerate(items)]


def turns_of(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_of(value: object, where: str) -> Prompt:
    if isinstance(value, str):
        prompt: Prompt = text_of(value, where)
    else:
        prompt = messages_of(value, where, "text or a list of messages")
    if not any(message["content"].strip() for message in turns_of(prompt)):
        raise InputError(f"{where}: found no text, expected something to answer")
    return prompt


def reply_of(value: object, where: str) -> tuple[list[Message], str]:
    """An answer in any of its forms -> the messages before it, if any, and its text.

    "Hello." | {"role": "assistant", "content": "Hello."} | [messages ..., the assistant's last]
    """
    if isinstance(value, str):
        return [], text_of(value, where)
    if isinstance(value, dict):
        messages = [_message(value, where)]
    else:
        messages = messages_of(value, where, "text, a message or a list of messages")
    *before, last = messages
    if last["role"] != "assistant":
        raise wrong(where, last["role"], "the last message to be the assistant's")
    return before, last["content"]


def joined(prompt: Prompt, before: list[Message], where: str) -> Prompt:
    """The prompt of an answer that may repeat it: `before` is empty or ends with the prompt."""
    turns = turns_of(prompt)
    if before and before[-len(turns) :] != turns:
        raise InputError(
            f"{where}: found a conversation that does not continue the prompt, "
            "expected the prompt's messages before the answer, or none"
        )
    return prompt if before in ([], turns) else before
