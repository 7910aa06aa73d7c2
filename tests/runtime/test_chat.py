"""Chat templates, against transformers' own rendering."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

import pytest

from edgellm.runtime.chat import SAMPLES, Chat, freeze
from edgellm.runtime.errors import BundleError, EdgellmError
from tests.runtime.fakes import CHATML, byte_tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
  {% set rest = messages[1:] %}{% set system = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}
{% else %}
  {% set rest = messages %}{% set system = '' %}
{% endif %}
{%- for message in rest %}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Conversation roles must alternate') }}
  {%- endif %}
  {%- if message['role'] == 'user' %}
    {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
  {%- else %}
    {%- generation %}{{- ' ' + message['content'] | trim + ' ' + eos_token }}{% endgeneration %}
  {%- endif %}
{%- endfor %}
"""
RICH = """{{- bos_token }}{% set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% set ns.last = loop.index0 %}
{{ m | tojson }} {{ m.content | length }}{% if loop.index > 5 %}{% break %}{% endif %}
{% endfor %}
last {{ ns.last }} {% if tools %}tools{% endif %}{{ missing }}{{ '<a href="&">' }}
{% if add_generation_prompt %}
    indented
{% endif %}
"""


@pytest.mark.parametrize("template", [SMOLLM2, LLAMA2, RICH, CHATML])
@pytest.mark.parametrize("messages", SAMPLES)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers(template: str, messages: list[dict[str, str]], prompt: bool) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    expected = oracle.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    chat = Chat(template, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
    assert chat.render(messages, prompt) == expected


def test_the_clock_can_be_set() -> None:
    chat = Chat("{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}")
    assert chat.render([], now=datetime(2024, 7, 26)) == "26 Jul 2024"
    assert chat.render([]) == datetime.now().strftime("%d %b %Y")


def test_a_templates_complaint_is_told() -> None:
    with pytest.raises(EdgellmError, match="Conversation roles must alternate"):
        Chat(LLAMA2).render([{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content.missing.deeper }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_what_a_template_may_not_do(template: str) -> None:
    with contextlib.suppress(EdgellmError):
        assert Chat(template).render([{"role": "user", "content": "x"}]) == ""  # undefined renders as nothing


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(BundleError, match="does not compile"):
        Chat("{% for %}")


def test_frozen_samples_leave_out_what_the_template_refuses() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    tokenizer = byte_tokenizer()
    frozen: dict[str, Any] = freeze(Chat(template), lambda text: tokenizer.encode(text).ids, datetime(2026, 1, 1))
    assert [len(sample["messages"]) for sample in frozen["samples"]] == [1, 3]
    assert all(sample["ids"] for sample in frozen["samples"])
