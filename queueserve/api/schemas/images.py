"""Images in a message: data URLs, or links for a server behind a worker. Nothing is fetched here.

What a link may point to is decided by its host (`ApiSettings.allowed_image_hosts`), so a link is
taken in one plain form only, in which everybody who reads it sees the same host.
"""

from __future__ import annotations

import binascii
import re
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from queueserve.api.limits import MAX_IMAGE_BYTES, MAX_LINK_CHARS
from queueserve.api.schemas.values import invalid

Kind: TypeAlias = Literal["image/png", "image/jpeg", "image/gif", "image/webp"]

_DATA = re.compile("data:image/(png|jpeg|gif|webp);base64,")
# No user, no spaces, no backslashes, no characters that one reader takes for others.
_LINK = re.compile(r"https?://([a-z0-9.-]+(?::\d+)?)(?:[/?#][!-\[\]-~]*)?", re.IGNORECASE)


def host_of(link: str) -> str | None:
    """Return the host of a link, with its port if it names one; None for a data URL."""
    found = _LINK.fullmatch(link)
    return found[1].lower() if found else None


def _is_base64(data: str) -> str:
    if len(data) // 4 * 3 > MAX_IMAGE_BYTES:
        raise invalid(f"An image has at most {MAX_IMAGE_BYTES} bytes")
    try:
        image = binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:  # UnicodeEncodeError is one, too
        raise invalid("The data of this image are not valid base64") from error
    if not image:
        raise invalid("This image is empty")
    return data


def _is_image(link: str) -> str:
    if link.startswith("data:"):
        head = _DATA.match(link)
        if head is None:
            raise invalid(
                "The data: URL of an image begins with data:image/png;base64, (or jpeg, gif, webp)"
            )
        _is_base64(link[head.end() :])
    elif len(link) > MAX_LINK_CHARS or host_of(link) is None:
        raise invalid("An image is a data: URL, or the http or https URL of a plain host")
    return link


ImageLink: TypeAlias = Annotated[
    str,
    AfterValidator(_is_image),
    Field(
        description="data:image/png;base64,… (png, jpeg, gif, webp), or a URL of an allowed host."
    ),
]
Base64: TypeAlias = Annotated[str, AfterValidator(_is_base64)]
