"""What the risk probe learns from: harmful and harmless requests in the same surroundings.

Whether a conversation is harmful follows from its request alone. What surrounds the request (a
frame, a system prompt, earlier turns, a harmless task before it) is drawn in the same way for both,
so that none of it tells them apart. The beginning of an answer is not needed: the risk is read
before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from safedraft.prompts.split import assign_split
from safedraft.text.messages import Message
from safedraft.training.config import RiskTrainingConfig
from safedraft.training.requests import (
    OWN_SHARES,
    TrainingRequest,
    TrainingSplit,
    add_frame,
    read_data,
    read_shipped,
    read_tables,
)

PLAIN = "plain"
"""The surroundings of a request that is asked as it stands."""


@dataclass(frozen=True)
class RatedConversation:
    """A conversation that ends with a request."""

    messages: Sequence[Message]
    request: TrainingRequest
    surroundings: str

    @property
    def harmful(self) -> bool:
        """Whether it is to be refused."""
        return self.request.kind == "harmful"


def build_conversations(
    split: TrainingSplit, config: RiskTrainingConfig
) -> list[RatedConversation]:
    """Build the conversations of a split: each request plain, and in random surroundings.

    Args:
        split: by the hash of the request, as in the training of a draft.
        config: how many requests and surroundings.
    """
    own = [r for r in read_rated_requests() if assign_split(r.text, OWN_SHARES) == split]
    if config.requests and config.requests < len(own):
        own = random.Random(f"requests {config.seed}").sample(own, config.requests)
    conversations = []
    for request in own:
        rng = random.Random(f"surroundings {config.seed} {request.text}")
        chosen = rng.sample(sorted(_SURROUNDINGS), min(config.dressed, len(_SURROUNDINGS)))
        conversations += [surround(request, name, rng) for name in (PLAIN, *chosen)]
    return conversations


def read_rated_requests() -> list[TrainingRequest]:
    """Read all requests that come with SafeDraft, in nine languages, code and short answers too."""
    files = {
        "languages_west": "languages",
        "languages_east": "languages",
        "code": "code",
        "short": "short",
    }
    others = [request for file, source in files.items() for request in read_tables(file, source)]
    return [*read_shipped(), *others]


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
