"""``requests`` as far as the specification's script uses it: that library is none of our dependencies."""

from typing import Any

import httpx


def post(url: str, *, json: Any) -> httpx.Response:
    """As ``requests.post``."""
    return httpx.post(url, json=json, timeout=30, trust_env=False)
