"""A defense that is more than a rule: it asks the target to be polite first."""

from safedraft.defenses.base import rewrite_request, undefended
from safedraft.text.messages import conversation


def polite(pair, messages, sampling, config, ask=undefended):
    """The target's reply to the request with a polite sentence before it."""
    messages = conversation(messages)
    request = messages[-1]["content"]
    return ask(pair, rewrite_request(messages, f"Please be kind. {request}"), sampling, config)
