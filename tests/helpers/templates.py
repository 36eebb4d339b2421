"""Chat templates that have, one by one, the traits of published ones; written for the tests.

Which published template has which trait is listed in docs/models.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import save_tokenizer
from tokenizers import AddedToken
from transformers import AutoTokenizer

_TURN = "{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}"
_BEGIN = "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"


def _template(turn: str = _TURN, *, before: str = "", begin: str = _BEGIN) -> str:
    return f"{before}{{% for m in messages %}}{turn}{{% endfor %}}{begin}"


_BARE = (
    "{% set c = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|start|>' + m['role'] + '\n' + c + '<|end|>\n' }}"
)
_OFF = (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
_LATE = (
    "{% set c = m['content'] %}{% if m['role'] == 'assistant' and m.reasoning_content is string %}"
    "{% if loop.last %}{% set c = '<think>\n' + m.reasoning_content + '\n</think>\n\n' + c %}"
    "{% endif %}{% endif %}{{ '<|start|>' + m['role'] + '\n' + c + '<|end|>\n' }}"
)

TRAITS = {
    "plain": _template(),
    "a date line": _template(
        before="{% if date_string is not defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '1 Jan' %}"
        "{% endif %}{% endif %}{{ '<|start|>system\nToday: ' + date_string + '<|end|>\n' }}"
    ),
    "a default system prompt": _template(
        before="{% if messages[0]['role'] != 'system' %}{{ '<|start|>system\nBe kind.<|end|>\n' }}"
        "{% endif %}"
    ),
    "trims": _template(_TURN.replace("m['content']", "m['content'] | trim")),
    "no system role": _template(
        before="{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('There is no system role.') }}{% endif %}"
    ),
    "strict alternation": _template(
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must take turns.') }}{% endif %}" + _TURN
    ),
    "reads parts": _template(
        "{% if m['content'] is string %}{% set c = m['content'] %}{% else %}"
        "{% set c = m['content'] | map(attribute='text') | join %}{% endif %}"
        "{{ '<|start|>' + m['role'] + '\n' + c + '<|end|>\n' }}"
    ),
    "drops reasoning": _template(_BARE, begin=_BEGIN),
    "opens reasoning": _template(
        _BARE, begin=_BEGIN.replace("assistant\n", "assistant\n<think>\n")
    ),
    "a switch": _template(_BARE, begin=_BEGIN.replace("{% endif %}", _OFF + "{% endif %}")),
    "reads reasoning": _template(_LATE, begin=_BEGIN.replace("{% endif %}", _OFF + "{% endif %}")),
    "channels": _template(begin=_BEGIN.replace("assistant\n", "assistant<|channel|>")),
    "other markers": _template(
        begin=_BEGIN.replace(
            "{% endif %}",
            "{% if thinking is not defined or thinking %}{{ '(thoughts)' }}{% endif %}{% endif %}",
        )
    ),
    "other markers, off": _template(
        begin=_BEGIN.replace(
            "{% endif %}", "{% if thinking %}{{ '(thoughts)' }}{% endif %}{% endif %}"
        )
    ),
}
"""A template for each trait."""


def tokenizer_with(folder: Path, trait: str) -> Any:
    """A tokenizer of bytes with this trait's template, read from ``folder``, where it is saved."""
    save_tokenizer(folder, template=TRAITS[trait])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    markers = [
        AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")
    ]
    tokenizer.add_tokens(markers)
    tokenizer.save_pretrained(folder)
    return tokenizer
