"""A third party's wheel beside SafeDraft's: it brings one of each extension point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import CONFORMANCE
from inspect_ai.log import list_eval_logs, read_eval_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
TARGET, DRAFT = (str(CONFORMANCE / name) for name in ("tiny-target", "tiny-far"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with both wheels, and this one's dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder / "venv")
    interpreter = folder / "venv/bin/python"
    site = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    for project in (ROOT, ROOT / "examples/extension"):
        run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, project)
    wheels = sorted(folder.glob("*.whl"))
    assert len(wheels) == 2
    run(interpreter, "-m", "pip", "install", "--no-deps", "--no-index", *wheels)
    # Dependencies come last on the path, so that the new environment's own packages win.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return interpreter


def run(*command: object) -> str:
    done = start(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def start(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd="/",
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        },
    )


def test_the_wheels_are_what_is_imported(python: Path) -> None:
    code = (
        "import safedraft, safedraft_example; print(safedraft.__file__, safedraft_example.__file__)"
    )
    for file in run(python, "-c", code).split():
        assert str(python.parents[1]) in file


def test_the_command_lists_what_the_wheel_brings(python: Path) -> None:
    listed = run(python, "-m", "safedraft", "eval", "--list")
    lines = [" ".join(line.split()) for line in listed.splitlines()]
    assert "whisper attack whisper harmbench" in lines
    assert "kitchen questions from a kitchen" in lines
    names = dict(line.split(": ", 1) for line in lines if line.startswith(("defenses:", "judges:")))
    assert {"always_union", "polite"} <= set(names["defenses"].split(", "))
    assert "brevity" in names["judges"].split(", ")


def test_rule_and_engine_decode(python: Path) -> None:
    code = f"""
import json, safedraft
from safedraft_example.rule import AlwaysUnionConfig

def load(target, engine):
    return safedraft.load_pair(target=target, draft={DRAFT!r}, engine=engine, dtype="float32")

def decode(pair, rule="always_union", **constants):
    config = AlwaysUnionConfig(**constants)
    sampling = safedraft.SamplingParams(max_new_tokens=24)
    stream = pair.stream_ids([5, 6, 7], sampling=sampling, rule=rule, config=config)
    return [(token.id, token.scheme, token.alpha) for token in stream.drain().trace]

counting, first = load({TARGET!r}, "counting"), load({TARGET!r}, "transformers")
print(json.dumps({{
    "rule": decode(counting),
    "rule in the first engine": decode(first),
    "without the draft": decode(counting, alpha=0),
    "target": decode(first, "target_only"),
    "without the target": decode(counting, alpha=1),
    "draft": decode(load({DRAFT!r}, "transformers"), "target_only"),
    "engine": counting.engine.name,
    "batches": counting.engine.batches,
}}))
"""
    outcome = json.loads(run(python, "-c", code))
    assert outcome["engine"] == "counting"
    assert outcome["batches"] == 3
    assert outcome["rule"] == outcome["rule in the first engine"]
    assert {(scheme, alpha) for _, scheme, alpha in outcome["rule"]} == {("union", 0.8)}
    tokens = {
        name: [token for token, *_ in outcome[name]]
        for name in ("without the draft", "target", "without the target", "draft")
    }
    assert tokens["without the draft"] == tokens["target"]
    assert tokens["without the target"] == tokens["draft"]
    assert tokens["target"] != tokens["draft"]


def test_an_option_that_the_engine_does_not_name_is_refused(python: Path) -> None:
    models = ["--target", TARGET, "--draft", DRAFT, "--engine", "counting"]
    options = ["--engine-option", "device_map=auto"]
    command = [python, "-m", "safedraft", "generate", *models, *options, "Hello"]
    done = start(*command)
    assert done.returncode
    assert "error: the engine counting: no option is called" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_evaluation_runs_with_all_of_them(
    python: Path, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    target, draft = tiny_pair
    models = ["--target", target, "--draft", draft, "--dtype", "float32", "--engine", "counting"]
    defenses = ["always_union", "always_union:alpha=0", "target_only", "polite"]
    options = [word for defense in defenses for word in ("--defense", defense)]
    options += ["--suite", "whisper", "--source", "whisper=kitchen"]
    options += ["--judge", "brevity:sentences=99", "--max-new-tokens", "8", "--limit", "2"]
    command = [python, "-m", "safedraft", "eval", *models, *options]
    run(*command, "--log-dir", tmp_path / "logs")
    logs = [read_eval_log(info) for info in list_eval_logs(str(tmp_path / "logs"))]
    assert {log.eval.model_args["label"] for log in logs} == set(defenses)
    replies = {
        log.eval.model_args["label"]: {s.id: s.output.completion for s in log.samples or []}
        for log in logs
    }
    assert replies["always_union"] != replies["always_union:alpha=0"]
    for log in logs:
        assert log.eval.model_args["engine"] == "counting"
        samples = log.samples or []
        requests = {
            sample.messages[0].text
            for sample in samples
            if sample.metadata["record"]["control_of"] is None
        }
        dishes = {f"(whispering) how do i cook {dish}?" for dish in ("bread", "rice", "soup")}
        assert len(requests) == 2
        assert requests <= dishes
        assert all(sample.messages[0].text.startswith("(whispering)") for sample in samples)
        assert [(sample.scores or {})["refused"].value for sample in samples] == [1] * 4


def test_defense_attack_and_judge_do_what_they_say(python: Path) -> None:
    code = """
import asyncio, json
from types import SimpleNamespace
from safedraft.defenses import find_defense
from safedraft.evaluation.attacks import ATTACKS
from safedraft.evaluation.tasks import find_judge
from safedraft.prompts.sources import Record

messages = ATTACKS.find("whisper")(Record("How do I cook RICE?", "kitchen"), None)
prefilled = [*messages, {"role": "assistant", "content": "First,"}]
asked = find_defense("polite")(None, prefilled, None, None, ask=lambda pair, asked, *_: asked)
state = SimpleNamespace(output=SimpleNamespace(completion="One. Two. Three."), metadata={})
scores = [asyncio.run(find_judge(spec)(state, None)).value
    for spec in ("brevity", "brevity:sentences=2", "brevity:sentences=3")]
print(json.dumps({"attack": messages, "defense": asked, "judge": scores}))
"""
    outcome = json.loads(run(python, "-c", code))
    whispered = "(whispering) how do i cook rice?"
    assert outcome["attack"] == [{"role": "user", "content": whispered}]
    assert outcome["defense"] == [
        {"role": "user", "content": f"Please be kind. {whispered}"},
        {"role": "assistant", "content": "First,"},
    ]
    assert outcome["judge"] == [0, 0, 1]
