"""API keys of a server: from a flag or from the environment."""

from __future__ import annotations

import os

KEY_VARIABLE = "DMOLE_API_KEY"
"""The key that clients send."""
UPSTREAM_KEY_VARIABLE = "DMOLE_UPSTREAM_KEY"
"""The key that ``dmole route-proxy`` sends."""


def key_of_clients(
    host: str,
    local: bool,
    *,
    anybody: bool,
    given: str | None = None,
    flag: str | None = "--api_key",
) -> str | None:
    """Return the key that clients must send; None if there is none.

    Args:
        host: Address to listen at, for messages.
        local: Whether only this machine reaches it.
        anybody: Whether others may ask without a key.
        given: Value of the flag; None takes the environment variable.
        flag: Name of the flag; None if the verb has none.

    Raises:
        ValueError: If the key has characters that a header cannot hold, or others reach the
            address and there is no key.
    """
    key = key_of(KEY_VARIABLE) if given is None else _checked(given, str(flag))
    if key is None and not local and not anybody:
        sources = KEY_VARIABLE if flag is None else f"{KEY_VARIABLE} or {flag}"
        raise ValueError(
            f"--host {host} can be reached by others: set {sources}, or allow everybody with "
            "--no_api_key"
        )
    return key


def key_of(variable: str) -> str | None:
    """Return the key in an environment variable; None if it is not set.

    Raises:
        ValueError: If the key is empty or has characters that a header cannot hold.
    """
    key = os.environ.get(variable)
    return None if key is None else _checked(key, variable)


def _checked(key: str, source: str) -> str:
    if not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise ValueError(f"{source} must be visible ASCII characters without spaces around them")
    return key
