"""The common part of judges at an endpoint: requests to the model, and results of failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.evaluation.judges.exchange import Exchange, read_exchange, unscored
from safedraft.models.endpoint import Endpoint
from safedraft.text.reasoning import answer_of

if TYPE_CHECKING:
    from inspect_ai.scorer import Scorer

CONNECTIONS = 8
"""Number of verdicts that are asked for at the same time."""

Grades = Mapping[str, float]
"""Scores by name."""

Ask = Callable[[Exchange], Sequence[Mapping[str, str]]]
"""Builds the messages that ask for a verdict."""


class Asked(Protocol):
    """A model that gives verdicts; ``Endpoint`` is one."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    def ask(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """Return the model's reply to a conversation. Whatever it raises is a failure."""
        ...


def connect(url: str, model: str, timeout: float, retries: int) -> Endpoint:
    """Connect to a judge, so that a missing one is reported before anything is decoded.

    Args:
        url: base URL of the API, as in ``http://localhost:8000/v1``.
        model: the model's name at the endpoint.
        timeout: seconds for one try.
        retries: number of times that a failed request is repeated.

    Raises:
        SafeDraftError: no server answers at ``url``, or it refuses the key, which is in the
            environment variable ``SAFEDRAFT_JUDGE_API_KEY``.
    """
    endpoint = Endpoint(url, model, "judge", timeout, retries)
    endpoint.require_reachable()
    return endpoint


def make_grader(
    name: str,
    scores: Sequence[str],
    model: Asked,
    ask: Ask,
    parse: Callable[[str], Grades],
    max_tokens: int,
) -> Scorer:
    """Make a scorer that asks a model for each verdict; if that fails, the sample is unscored.

    Args:
        name: the scorer's registered name.
        scores: names of the scores that ``parse`` returns.
        model: the model that is asked.
        ask: builds the question.
        parse: reads the reply, without the reasoning that it may begin with; raises ValueError if
            that is not a verdict.
        max_tokens: maximum tokens of a reply.
    """
    import anyio
    from inspect_ai.scorer import Score, Target, mean, scorer, stderr
    from inspect_ai.solver import TaskState

    limiter = anyio.CapacityLimiter(CONNECTIONS)

    @scorer(metrics={score: [mean(), stderr()] for score in scores}, name=name)
    def grader() -> Scorer:
        async def judge(state: TaskState, target: Target) -> Score:
            question = ask(read_exchange(state))
            try:
                reply = await anyio.to_thread.run_sync(
                    model.ask, question, max_tokens, limiter=limiter
                )
                grades = parse(answer_of(reply))
            except SafeDraftError as error:  # it names the judge
                return unscored(str(error))
            except Exception as error:  # whatever the error, the sample is unscored
                return unscored(f"the judge {model.model} failed: {first_line(error)}")
            metadata = {"judge": model.model}
            return Score(value=dict(grades), explanation=reply.strip()[:200], metadata=metadata)

        return judge

    return grader()


def ask_once(text: str) -> Sequence[Mapping[str, str]]:
    """The messages of a question that is all in one turn."""
    return [{"role": "user", "content": text}]
