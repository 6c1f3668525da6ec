"""Images in a chat, for APIs that want them otherwise than as URLs."""

from base64 import b64decode

from llms.errors import Rejected


def parse_data_url(url: str) -> tuple[str, str] | None:
    """The media type and the Base64 text of an image that is within its URL; `None` of one that is elsewhere.

    Raises:
        Rejected: If it is no Base64.
    """
    if not url.startswith("data:"):
        return None
    kind, comma, data = url.removeprefix("data:").partition(";base64,")
    try:
        b64decode(data, validate=True)
    except ValueError:
        comma = ""
    if not comma:
        raise Rejected("An image in the chat is no Base64: its URL is `https://…` or `data:image/png;base64,…`.")
    return kind, data
