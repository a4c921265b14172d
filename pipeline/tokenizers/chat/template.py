"""Render a chat template, and divide the result into special tokens and text.

A template is Jinja source as in transformers' tokenizer_config.json, with the same variables: `messages` and
`add_generation_prompt`. Its `{% generation %}` block, which transformers knows too, encloses what the assistant writes:
those tokens have a loss.

If a message spells a special token, it stays text. Before rendering, special tokens in messages are escaped, so that
only those of the template itself are found afterwards. Then the escapes are removed. The escape character is a Unicode
noncharacter, and is escaped too where a message contains it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import BadData

Message = Mapping[str, str]
"""One turn: `role` (system, user or assistant) and `content`."""

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = (TURN_START, TURN_END)

# OpenAI's ChatML, as Qwen writes it but without a default system message.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_MARK, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_PROTECTED = re.compile("|".join(map(re.escape, (_MARK, _BEGIN, _END, *SPECIAL))))
_MARKED = re.compile(f"{_MARK}([0-3])")
_UNMARKED = {"0": _MARK, "1": _BEGIN, "2": _END, "3": ""}
_BORDER = re.compile("(" + "|".join(map(re.escape, (_BEGIN, _END, *SPECIAL))) + ")")


class Part(NamedTuple):
    """A special token, or text between borders. Borders are special tokens, and the ends of a generation block."""

    text: str
    is_special: bool
    has_loss: bool


def render(source: str, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Part]:
    """Return the parts of a rendered conversation, in order.

    Raises BadData if a field of a message is not a string, or if the template is invalid or refuses the messages.
    """
    protected = [_protect(message) for message in messages]
    rendered = _rendered(source, protected, add_generation_prompt)
    return list(_parts(rendered))


def _rendered(source: str, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(_compile(source).render(messages=messages, add_generation_prompt=add_generation_prompt))
    except (TemplateError, TypeError, ArithmeticError, LookupError) as error:
        raise BadData(f"the chat template refuses these messages: {error}", hint="check role and content") from None


def check_template(source: str) -> None:
    """Raise BadData for a template that is not Jinja, or that does not mark what the assistant writes."""
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    parts = render(source, [question, answer])
    if not any(part.has_loss for part in parts):
        raise BadData(
            "the chat template does not mark what the assistant writes",
            hint="put {% generation %} before the answer and {% endgeneration %} after its end of turn",
        )


def _protect(message: Message) -> dict[str, str]:
    for field, value in message.items():
        if not isinstance(value, str):
            raise BadData(
                f"the field {field} of a message must be a string, got {type(value).__name__}",
                hint="write it as a string",
            )
    return {field: _PROTECTED.sub(_protected, value) for field, value in message.items()}


def _protected(match: re.Match[str]) -> str:
    text = match[0]
    if text in (_MARK, _BEGIN, _END):
        return f"{_MARK}{(_MARK, _BEGIN, _END).index(text)}"
    return f"{text[0]}{_MARK}3{text[1:]}"


def _parts(rendered: str) -> Iterator[Part]:
    has_loss = False
    for piece in _BORDER.split(rendered):
        if piece in (_BEGIN, _END):
            has_loss = piece == _BEGIN
        elif piece:
            if _MARK in piece:
                yield Part(_MARKED.sub(lambda match: _UNMARKED[match[1]], piece), False, has_loss)
            else:
                yield Part(piece, piece in SPECIAL, has_loss)


@functools.lru_cache(8)
def _compile(source: str) -> Any:
    """Compile a template in a sandbox, with the settings of transformers."""
    from jinja2 import TemplateError, TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `{% generation %}`, which encloses its output in two noncharacters."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_between_marks"), [], [], body).set_lineno(line)

        def _between_marks(self, caller: Any) -> str:
            return f"{_BEGIN}{caller()}{_END}"

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise BadData(f"the chat template is not Jinja: {error}", hint=f"check its line {error.lineno}") from None
