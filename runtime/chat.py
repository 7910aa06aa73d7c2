"""Conversations to prompts: the checkpoint's own Jinja template, sandboxed, as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgellm.runtime.errors import BundleError, EdgellmError

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant", "content": str}

# What export freezes into the manifest: one turn, a system prompt, and several turns with white space and emoji.
SAMPLES: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is the capital of France?"},),
    ({"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Name a prime above 10."}),
    (
        {"role": "user", "content": "  Hello,\n\nworld 🌍 "},
        {"role": "assistant", "content": "Hi! How are you?"},
        {"role": "user", "content": "Fine: naïve café, 1 + 1 = ?"},
    ),
)


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks answers for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Chat:
    """A compiled chat template. Raises BundleError when it does not compile.

    special: what templates may name, such as {"bos_token": "<s>", "eos_token": "</s>"}.
    """

    def __init__(self, template: str, special: Mapping[str, str] | None = None) -> None:
        self._special = dict(special or {})
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(template)
        except Exception as error:
            raise BundleError(f"the chat template does not compile: {error}", "Export the bundle again.") from None

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, now: datetime | None = None
    ) -> str:
        """The prompt of a conversation, special tokens written out: encode it without adding any.

        now: the clock of strftime_now, by default the real one. Raises EdgellmError with the template's complaint.
        """

        def strftime_now(form: str) -> str:
            return (now or datetime.now()).strftime(form)

        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=strftime_now,
                **self._special,
            )
        except Exception as error:  # templates run code: any type
            raise EdgellmError(
                f"the chat template refuses these messages: {error}",
                "Check the order of roles (system, then user and assistant in turn), or try without a system message.",
            ) from None


def freeze(chat: Chat, encode: Callable[[str], list[int]], created: datetime) -> dict[str, Any]:
    """The manifest's "chat": ids of sample conversations with the generation prompt at `created`.

    Samples that the template refuses (some know no system role) are left out.
    """
    frozen = []
    for messages in SAMPLES:
        try:
            text = chat.render(messages, now=created)
        except EdgellmError:
            continue
        frozen.append({"messages": [dict(message) for message in messages], "ids": encode(text)})
    return {"samples": frozen}


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a model should not read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
