"""Images in a chat, for APIs that take no data URLs."""

from base64 import b64decode

from llms.errors import Rejected


def parse_data_url(url: str) -> tuple[str, str] | None:
    """Return the media type and the Base64 text of a data URL; `None` of another URL.

    Raises:
        Rejected: If it is not Base64.
    """
    if not url.startswith("data:"):
        return None
    media_type, separator, data = url.removeprefix("data:").partition(";base64,")
    try:
        b64decode(data, validate=True)
    except ValueError:
        separator = ""
    if not separator:
        raise Rejected("An image in the chat is no Base64: its URL is `https://…` or `data:image/png;base64,…`.")
    return media_type, data
