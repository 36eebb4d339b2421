"""The sums of this folder as a task of inspect_ai, for any model that it knows."""

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

ASKED = "\nThink step by step. End with a line that says 'Answer:' and the number."


@task
def sums() -> Task:
    lines = Path(__file__).with_suffix(".jsonl").read_text().splitlines()
    sums = [json.loads(line) for line in lines]
    dataset = [Sample(input=one["question"] + ASKED, target=one["answer"]) for one in sums]
    return Task(dataset=dataset, solver=generate(), scorer=includes())
