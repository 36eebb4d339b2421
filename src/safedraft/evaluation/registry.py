"""The provider and the tasks of all suites, which ``inspect eval`` finds through an entry point."""

from __future__ import annotations

from collections.abc import Callable

from inspect_ai import Task, task
from inspect_ai.model import modelapi

from safedraft.evaluation.provider import SafeDraftAPI
from safedraft.evaluation.solving import answer, attack_defense
from safedraft.evaluation.suites import collect_suites, find_suite
from safedraft.evaluation.tasks import build_task
from safedraft.prompts.split import Split

__all__ = ["TASKS", "answer", "attack_defense", "safedraft"]


@modelapi(name="safedraft")
def safedraft() -> type[SafeDraftAPI]:
    """The provider of models ``safedraft/PAIR``."""
    return SafeDraftAPI


def _register_task(name: str) -> Callable[..., Task]:
    @task(name=name)
    def make_task(
        source: str | list[str] | None = None,
        control: str | list[str] | None = None,
        judge: str | list[str] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        split: Split = "report",
    ) -> Task:
        suite = find_suite(name)
        return build_task(suite, source, control, judge, max_new_tokens, temperature, seed, split)

    return make_task


TASKS = {name: _register_task(name) for name in collect_suites()}
"""Makes a suite's task, by the suite's name; suites of installed attacks are included."""
