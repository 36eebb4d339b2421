"""Attacks, judges and sources of other distributions, which need nothing but to be installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log
from installed import install
from stage import serve_wheel, use_pair

from safedraft.core.errors import SafeDraftError
from safedraft.core.plugins import Registry
from safedraft.evaluation import judges, matrix, registry, solving, suites
from safedraft.evaluation.attacks import ATTACKS
from safedraft.evaluation.logs import read_logs
from safedraft.evaluation.tasks import find_judges
from safedraft.prompts import sources
from safedraft.prompts.builtin import harmbench

MODULE = """
from inspect_ai.scorer import Score, mean, scorer
from safedraft.prompts.sources import Record
from safedraft.prompts.split import Shares

def shout(record, pair):
    return [{"role": "user", "content": record.request.upper()}]

def strict(limit: str = "1"):
    @scorer(metrics=[mean()], name="harmful")
    def harmful():
        async def score(state, target):
            return Score(value=int(len(state.output.completion) > int(limit)))
        return score
    return harmful()

class Riddles:
    about = "riddles"
    shares = Shares(0, 0)
    def load(self, report):
        yield Record("What has keys?", "riddles")
        yield Record("What does a child ask?", "riddles")

riddles = Riddles()
"""
GROUPS = {
    "safedraft.attacks": {"shout": "shouting:shout", "ordinary": "shouting:shout"},
    "safedraft.judges": {"strict": "shouting:strict"},
    "safedraft.sources": {"riddles": "shouting:riddles", "unusable": "nowhere:X"},
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = install(tmp_path / "site", "shouting", GROUPS, {"shouting": MODULE})
    monkeypatch.syspath_prepend(folder)
    for module in (suites, solving, matrix):
        monkeypatch.setattr(module, "ATTACKS", Registry(ATTACKS.group, ATTACKS.kind))
    monkeypatch.setattr(judges, "JUDGES", Registry("safedraft.judges", "judge"))
    monkeypatch.setattr(sources, "SOURCES", Registry("safedraft.sources", "source"))
    return folder


@pytest.mark.slow
def test_an_attack_a_judge_and_a_source_run_by_their_names(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_wheel(tmp_path, monkeypatch)
    use_pair(tmp_path, monkeypatch, lambda prompt: "Sure.")
    monkeypatch.setitem(registry.TASKS, "shout", registry._register_task("shout"))
    plan = matrix.Matrix(
        defenses=["target_only"],
        suites=["shout"],
        sources={"shout": ["riddles"]},
        judges=["strict:limit=3"],
    )
    (log,) = matrix.prepare(plan, tmp_path / "logs").run("none")
    finished = read_eval_log(log.location).samples or []
    samples = {bool(sample.metadata["record"]["control_of"]): sample for sample in finished}
    assert samples[False].messages[0].text == "WHAT HAS KEYS?"
    control = samples[True]
    assert control.messages[0].text == control.metadata["record"]["request"].upper()
    (run,) = read_logs([tmp_path / "logs"]).runs
    assert (run.suite, run.kind, run.family) == ("shout", "attack", "shout")
    assert [row.succeeded for row in run.rows] == [True, True]


def test_its_suite_asks_the_harmful_requests_by_default(installed: Path) -> None:
    suite = suites.find_suite("shout")
    assert (suite.kind, suite.family, suite.source) == ("attack", "shout", harmbench.name)


def test_an_attack_with_the_name_of_another_suite_is_refused(installed: Path) -> None:
    with pytest.raises(SafeDraftError, match="'ordinary' like a suite of safedraft"):
        suites.find_suite("ordinary")
    assert suites.find_suite("arithmetic").attack == "direct"


def test_two_judges_of_one_score_are_refused(installed: Path) -> None:
    install(installed, "copied", {"safedraft.judges": {"lax": "shouting:strict"}})
    with pytest.raises(SafeDraftError, match="strict and lax both give the score 'harmful'"):
        find_judges(["strict", "lax:limit=9"])
    assert len(find_judges(["strict", "phrases"])) == 2


@pytest.mark.slow
def test_the_command_lists_them_and_inspect_has_the_task(installed: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); "
        "from safedraft.evaluation.registry import TASKS; assert 'shout' in TASKS; "
        "assert 'shouting' not in sys.modules; "
        "from safedraft.cli import main; sys.argv = ['safedraft', 'eval', '--list']; main()"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    lines = [" ".join(line.split()) for line in listed.stdout.splitlines()]
    assert "shout attack shout harmbench" in lines
    assert "riddles riddles" in lines
    assert "judges: classifier, endpoint, guard, phrases, strict, strongreject" in lines
    assert "not usable: the source 'unusable' of shouting 1.2" in listed.stdout
