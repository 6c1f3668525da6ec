"""Chat templates: a chat as one text, rendered by the model's own template in a sandbox."""

from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llms.errors import Rejected
from llms.typing import ChatType, Message

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
"""Default for files without a template, as in llama.cpp's server."""


def render_chat(template: str | None, chat: ChatType, **special: str) -> str:
    """Render the chat as the model was trained to read it, up to where its answer begins.

    Args:
        template: The model's Jinja template.
        chat: Messages of text.
        special: Texts of special tokens, such as `bos_token`.

    Raises:
        Rejected: If the template refuses the chat, or it has other parts than text.
    """
    messages = [{**message, "content": message_text(message)} for message in chat]
    try:
        return _compile(template or CHATML).render(messages=messages, add_generation_prompt=True, **special)
    except TemplateError as error:
        raise Rejected(f"The model's chat template refuses this chat: {error}") from None


def message_text(message: Message) -> str:
    """Return the text of a message.

    Raises:
        Rejected: If it has other parts than text.
    """
    content = message["content"]
    if isinstance(content, str):
        return content
    if other := [part.get("type") for part in content if part.get("type") != "text"]:
        raise Rejected(f"This model reads text only: the chat has a part of type `{other[0]}`.")
    return "".join(part["text"] for part in content)


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {
        "raise_exception": _raise_template_error,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.from_string(template)


def _raise_template_error(reason: Any) -> None:
    raise TemplateError(str(reason))
