"""Where an image comes from on the page: drawn, dropped, pasted or chosen. Its value is JSON, a list of data URLs.

Images from files are made small by the browser, so that a photo of a phone is a few kilobytes on its way. A canvas is
drawn on with a finger, a pen, a mouse, or the arrow keys (space puts the pen down and takes it up).
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

__all__ = ["CSS", "FILE", "FILE_JAVASCRIPT", "JAVASCRIPT", "TEMPLATE", "pictures"]

_HERE = Path(__file__).parent
TEMPLATE, CSS, JAVASCRIPT, FILE, FILE_JAVASCRIPT = (
    (_HERE / name).read_text("utf-8") for name in ("pad.html", "pad.css", "pad.js", "file.html", "file.js")
)


def pictures(value: object, most: int) -> list[bytes]:
    """The files' bytes of what a pad sent; anything may be sent in its place.

    Raises:
        ValueError: not what a pad sends, or more than `most` bytes of it.
    """
    if not value:
        return []
    if not isinstance(value, str) or len(value) > most:
        raise ValueError("what was sent is not a list of images, or too large")
    try:
        urls = json.loads(value)
        if not isinstance(urls, list):
            raise ValueError("no list")
        return [base64.b64decode(str(url).partition(";base64,")[2], validate=True) for url in urls]
    except (ValueError, RecursionError, binascii.Error) as error:
        raise ValueError("what was sent is not a list of images") from error
