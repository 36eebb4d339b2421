"""What ``inspect eval`` finds by the entry point: the provider, and a task for every suite."""

from __future__ import annotations

from collections.abc import Callable

from inspect_ai import Task, task
from inspect_ai.model import modelapi

from safedraft.evaluation.provider import SafeDraftAPI
from safedraft.evaluation.suites import SUITES, Suite
from safedraft.evaluation.tasks import answered, attacked, suite_task
from safedraft.prompts.split import Split

__all__ = ["TASKS", "answered", "attacked", "safedraft"]


@modelapi(name="safedraft")
def safedraft() -> type[SafeDraftAPI]:
    """The provider of models ``safedraft/PAIR``."""
    return SafeDraftAPI


def _task(suite: Suite) -> Callable[..., Task]:
    @task(name=suite.name)
    def make(
        source: str | list[str] | None = None,
        judge: str | list[str] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        split: Split = "report",
    ) -> Task:
        return suite_task(suite, source, judge, max_new_tokens, temperature, seed, split)

    return make


TASKS = {name: _task(suite) for name, suite in SUITES.items()}
"""A function that makes the task, by the suite's name."""
