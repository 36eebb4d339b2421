"""Conversations to train on: harmful and harmless requests in the same surroundings.

Whether a conversation is harmful follows from its request alone. What surrounds the request (a
frame, a system prompt, earlier turns, a harmless task before it) is drawn in the same way for both,
so that none of it tells them apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from safedraft.text.messages import Message
from safedraft.training.encodings import encode
from safedraft.training.requests import TrainingRequest, add_frame, read_data

PLAIN = "plain"
"""The surroundings of a request that is asked as it stands."""

_BY_SYSTEM = 0.25  # of the requests for data, by a system prompt


@dataclass(frozen=True)
class RatedConversation:
    """A conversation that ends with a request."""

    messages: Sequence[Message]
    request: TrainingRequest
    surroundings: str

    @property
    def harmful(self) -> bool:
        """Whether its request is harmful, so that a reply should refuse."""
        return self.request.kind == "harmful"


def build_conversations(
    requests: Sequence[TrainingRequest], dressed: int, seed: int
) -> list[RatedConversation]:
    """Build conversations: each request plain, and in ``dressed`` kinds of random surroundings."""
    conversations = []
    for request in requests:
        rng = random.Random(f"surroundings {seed} {request.text}")
        chosen = rng.sample(sorted(_SURROUNDINGS), min(dressed, len(_SURROUNDINGS)))
        conversations += [surround(request, name, rng) for name in (PLAIN, *chosen)]
    return conversations


def ask_in_forms(
    requests: Sequence[TrainingRequest], every: int, seed: int
) -> list[RatedConversation]:
    """Build the conversations of one request in ``every`` in each of the forms.

    The forms are data that a program reads, an encoded text, and a long template.
    """
    chosen = requests[seed % every :: every] if every else []
    return [
        RatedConversation(ask(request.text, random.Random(f"{name} {request.text}")), request, name)
        for name, ask in _FORMS.items()
        for request in chosen
    ]


def surround(request: TrainingRequest, name: str, rng: random.Random) -> RatedConversation:
    """Put a request into surroundings of this name."""
    messages = _SURROUNDINGS[name](request.text, rng) if name != PLAIN else _ask(request.text)
    return RatedConversation(messages, request, name)


def _ask(text: str, system: str | None = None, history: Sequence[str] = ()) -> list[Message]:
    roles = ("user", "assistant")
    turns: list[Message] = [
        {"role": roles[at % 2], "content": turn} for at, turn in enumerate([*history, text])
    ]
    return [{"role": "system", "content": system}, *turns] if system else turns


def _put_in_frame(table: str, text: str, rng: random.Random) -> list[Message]:
    frames = [frame for group in read_data("dressings")[table].values() for frame in group]
    return _ask(rng.choice(frames).replace("{request}", text))


def _put_under_system(text: str, rng: random.Random) -> list[Message]:
    systems = read_data("dressings")["systems"]
    return _ask(text, system=rng.choice(systems[rng.choice(sorted(systems))]))


def _put_into_data(text: str, rng: random.Random) -> list[Message]:
    if rng.random() < _BY_SYSTEM:
        return _ask(text, system=rng.choice(read_data("dressings")["data_systems"]["all"]))
    return _put_in_frame("data", text, rng)


def _encode(text: str, rng: random.Random) -> list[Message]:
    encoded, written = encode(text, rng)
    frame = rng.choice(read_data("dressings")["encoded"]["all"])
    return _ask(frame.replace("{written}", written).replace("{request}", encoded))


def _put_after_turns(text: str, rng: random.Random) -> list[Message]:
    histories = read_data("dressings")["histories"]
    return _ask(text, history=rng.choice(histories[rng.choice(sorted(histories))]))


_SURROUNDINGS: Mapping[str, Callable[[str, random.Random], list[Message]]] = {
    "jailbreak frame": lambda text, rng: _ask(add_frame(text, rng)),
    "frame": partial(_put_in_frame, "frames"),
    "harmless task first": partial(_put_in_frame, "first"),
    "system prompt": _put_under_system,
    "earlier turns": _put_after_turns,
}

_FORMS: Mapping[str, Callable[[str, random.Random], list[Message]]] = {
    "data": _put_into_data,
    "encoding": _encode,
    "long template": partial(_put_in_frame, "long"),
}
