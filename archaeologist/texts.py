"""Text that others wrote, on its way to a log, a terminal or a page. Pure."""

import re
from typing import Final

_STEERING: Final = re.compile("[\u061c\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
"""What JSON lets stand and some terminals obey, take for the end of a line or write backwards from."""


def escaped(text: str) -> str:
    """Text on one line, with what would steer a terminal or begin another line written as an escape."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def visible(text: str) -> str:
    """Text with what turns its direction, or would steer a terminal, written as escapes."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escaped_json(text: str) -> str:
    """JSON that means the same and can be shown on a terminal."""
    return visible(text)
