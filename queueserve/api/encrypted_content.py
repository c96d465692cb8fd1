"""The `encrypted_content` of a reasoning item: its text, for clients that send it back. Pure.

OpenAI hides a model's reasoning from the client that must carry it. Here the client sees it anyway,
so this is no secret and no key is needed: a mark, and the text in base64.
"""

from __future__ import annotations

import base64

_MARK = "qs1."


def packed(text: str) -> str:
    """Return the encrypted_content that stands for a text."""
    return _MARK + base64.urlsafe_b64encode(text.encode(errors="replace")).decode()


def unpacked(content: str) -> str:
    """Return the text. Raises ValueError for what is not of this server."""
    if not content.startswith(_MARK):
        raise ValueError("no content of this server")
    return base64.b64decode(content.removeprefix(_MARK), altchars=b"-_", validate=True).decode()
