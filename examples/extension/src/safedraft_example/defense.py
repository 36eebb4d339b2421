"""A defense that is more than a rule: it asks the target to be polite first."""

from safedraft.defenses.base import answer_undefended, find_last_user, rewrite_request
from safedraft.text.messages import conversation


def polite(pair, messages, sampling, config, ask=answer_undefended):
    """The target's reply to the request with a polite sentence before it."""
    messages = conversation(messages)
    request = messages[find_last_user(messages)]["content"]
    return ask(pair, rewrite_request(messages, f"Please be kind. {request}"), sampling, config)
