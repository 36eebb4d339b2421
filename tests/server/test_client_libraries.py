"""Libraries that speak OpenAI's API, with their defaults, against a running server.

LangChain, LlamaIndex, LiteLLM and pydantic-ai are the extra ``clients``. They have an environment
of their own (``constraints-clients.txt``), since LlamaIndex needs an older client of OpenAI's than
the one that the other tests use. Where a library is missing, its tests are skipped.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import add
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import openai
import pytest
from pydantic import BaseModel
from serving import Served, serving
from talking import TalkingPair, talking

from safedraft.models.registry import DEFAULT_PAIR as NAME  # what the examples ask for

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples/clients"

SAYS = "Plain words, twice: plain words."
STORY = "Once upon a time."
PERSON = '{"name": "Ann"}'
CITY = '{"name": "Paris", "country": "France"}'
QUESTION = {"role": "user", "content": "hi"}
TWICE = "What is twice 21?"
TWICE_ASKED = {"role": "user", "content": TWICE}
"""The tool has to be called, and its result is the answer."""
PERSON_ASKED = {"role": "user", "content": "a person"}
REQUEST = {"role": "user", "content": "a story"}


def answer(prompt: str) -> str:
    role, _, content = prompt.rpartition("<|start|>")[2].removesuffix("<|end|>\n").partition("\n")
    if role == "tool":
        return f"It is {content}."
    if "<tools>" in prompt and "twice" in content:
        return call("double", {"number": 21})
    if found := re.search(r'<tools>.*?"name": "(Person|final_result)"', prompt):
        return call(found[1], {"name": "Ann"})
    if "person" in prompt:
        return PERSON
    if "Eiffel" in prompt:
        return CITY
    return STORY if prompt.endswith("story") or "story<" in prompt else SAYS


def call(name: str, arguments: dict[str, Any]) -> str:
    called = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{called}\n</tool_call>"


class Person(BaseModel):
    """What a structured reply would hold."""

    name: str


def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


def run_double(function: Any) -> str:
    """The result of a call of ``double``, for the message that answers it."""
    assert function.name == "double"
    return str(double(**json.loads(function.arguments)))


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "double",
            "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}},
        },
    }
]
TEMPLATE = (
    "{% if tools %}<|start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|end|>\n{% endif %}'
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


class Library(NamedTuple):
    """A client with its defaults. A turn is a role and a text, or a message that it returned."""

    ask: Callable[[list[Any]], tuple[str, Any]]
    """From turns to the reply's text and the message object that holds it."""
    stream: Callable[[list[Any]], list[str]]
    refused: dict[str, Callable[[], Any]]
    """Calls that the server refuses, by a name."""
    structured: Mapping[str, Callable[[], Any]] = MappingProxyType({})
    """Calls that return a ``Person``, by a name."""
    tools: Mapping[str, Callable[[], str]] = MappingProxyType({})
    """Calls that let the model use ``double`` for ``TWICE``, and return the answer; by a name."""


def open_openai(url: str) -> Library:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    create = client.chat.completions.create

    def ask(turns: list[Any]) -> tuple[str, Any]:
        message = create(model=NAME, messages=turns).choices[0].message
        return message.content or "", message

    def stream(turns: list[Any]) -> list[str]:
        chunks = create(model=NAME, messages=turns, stream=True)
        return [chunk.choices[0].delta.content or "" for chunk in chunks]

    def answer_with(message: Any, made: Any) -> str:
        result = {"role": "tool", "tool_call_id": made.id, "content": run_double(made.function)}
        return ask([TWICE_ASKED, message, result])[0]

    def use_tool() -> str:
        turns: Any = [TWICE_ASKED]
        message = create(model=NAME, messages=turns, tools=TOOLS).choices[0].message
        (made,) = message.tool_calls or ()
        return answer_with(message, made)

    def use_tool_in_stream() -> str:
        turns: Any = [TWICE_ASKED]
        with client.chat.completions.stream(model=NAME, messages=turns, tools=TOOLS) as events:
            message = events.get_final_completion().choices[0].message
        (made,) = message.tool_calls or ()
        return answer_with(message, made)

    asked: Any = [PERSON_ASKED]
    parse = client.chat.completions.parse
    return Library(
        ask,
        stream,
        {
            "responses": lambda: client.responses.create(model=NAME, input="hi"),
        },
        {
            "structured": lambda: (
                parse(model=NAME, messages=asked, response_format=Person).choices[0].message.parsed
            )
        },
        {"tools": use_tool, "tools, streamed": use_tool_in_stream},
    )


def open_langchain(url: str) -> Library:
    chat = importlib.import_module("langchain_openai").ChatOpenAI
    model = chat(base_url=url, api_key="none", model=NAME)

    def ask(turns: list[Any]) -> tuple[str, Any]:
        message = model.invoke(turns)
        return message.content, message

    def use_tool(*, streamed: bool) -> str:
        bound, asked = model.bind_tools([double]), [TWICE_ASKED]
        message = reduce(add, bound.stream(asked)) if streamed else bound.invoke(asked)
        (made,) = message.tool_calls
        result = {
            "role": "tool",
            "tool_call_id": made["id"],
            "content": str(double(**made["args"])),
        }
        return str(bound.invoke([*asked, message, result]).content)

    def structured(method: str) -> Callable[[], Any]:
        return lambda: model.with_structured_output(Person, method=method).invoke("a person")

    return Library(
        ask,
        lambda turns: [chunk.content for chunk in model.stream(turns)],
        {
            "responses": lambda: chat(
                base_url=url, api_key="none", model=NAME, use_responses_api=True
            ).invoke("hi"),
        },
        {
            "structured": lambda: model.with_structured_output(Person).invoke("a person"),
            "structured by a schema": structured("json_schema"),
            "structured by JSON": structured("json_mode"),
            "structured by a function": structured("function_calling"),
        },
        {
            "tools": lambda: use_tool(streamed=False),
            "tools, streamed": lambda: use_tool(streamed=True),
        },
    )


def open_llama_index(url: str) -> Library:
    like = importlib.import_module("llama_index.llms.openai_like").OpenAILike
    message_of = importlib.import_module("llama_index.core.llms").ChatMessage
    options = {"api_base": url, "api_key": "none", "model": NAME, "max_retries": 0}
    model = like(**options, is_chat_model=True)
    calling = like(**options, is_chat_model=True, is_function_calling_model=True)

    def messages(turns: list[Any]) -> list[Any]:
        return [message_of(**turn) if isinstance(turn, dict) else turn for turn in turns]

    def ask(turns: list[Any]) -> tuple[str, Any]:
        message = model.chat(messages(turns)).message
        return message.content, message

    return Library(
        ask,
        lambda turns: [chunk.delta or "" for chunk in model.stream_chat(messages(turns))],
        {
            "structured": lambda: model.as_structured_llm(Person).complete("hi"),
            "completions": lambda: like(**options).complete("hi"),
        },
        {
            "structured by a function": lambda: (
                calling.as_structured_llm(Person).complete("a person").raw
            )
        },
    )


def open_litellm(url: str) -> Library:
    litellm = importlib.import_module("litellm")

    def complete(turns: list[Any], **options: Any) -> Any:
        connection = {"model": f"openai/{NAME}", "api_base": url, "api_key": "none"}
        return litellm.completion(messages=turns, num_retries=0, **connection, **options)

    def ask(turns: list[Any]) -> tuple[str, Any]:
        message = complete(turns).choices[0].message
        return message.content, message

    def use_tool() -> str:
        message = complete([TWICE_ASKED], tools=TOOLS).choices[0].message
        (made,) = message.tool_calls
        result = {"role": "tool", "tool_call_id": made.id, "content": run_double(made.function)}
        return ask([TWICE_ASKED, message, result])[0]

    def stream(turns: list[Any]) -> list[str]:
        chunks = complete(turns, stream=True)
        return [chunk.choices[0].delta.content or "" for chunk in chunks]

    return Library(
        ask,
        stream,
        {},
        {
            "structured": lambda: Person.model_validate_json(
                complete([PERSON_ASKED], response_format=Person).choices[0].message.content
            )
        },
        {"tools": use_tool},
    )


def open_pydantic_ai(url: str) -> Library:
    ai = importlib.import_module("pydantic_ai")
    models = importlib.import_module("pydantic_ai.models.openai")
    provider = importlib.import_module("pydantic_ai.providers.openai").OpenAIProvider(
        base_url=url, api_key="none"
    )
    model = models.OpenAIChatModel(NAME, provider=provider)
    agent, caller = ai.Agent(model), ai.Agent(model, tools=[double])
    parts = {"system": ai.SystemPromptPart, "user": ai.UserPromptPart}

    def messages(turns: list[Any]) -> list[Any]:
        return [
            ai.ModelRequest([parts[turn["role"]](turn["content"])])
            if isinstance(turn, dict)
            else turn
            for turn in turns
        ]

    def ask(turns: list[Any]) -> tuple[str, Any]:
        run = agent.run_sync(message_history=messages(turns))
        return run.output, run.new_messages()[-1]

    def stream(turns: list[Any]) -> list[str]:
        run = agent.run_stream_sync(message_history=messages(turns))
        return list(run.stream_text(delta=True, debounce_by=None))

    def structured(output: Any) -> Callable[[], Any]:
        return lambda: ai.Agent(model, output_type=output).run_sync("a person").output

    return Library(
        ask,
        stream,
        {
            "responses": lambda: ai.Agent(
                models.OpenAIResponsesModel(NAME, provider=provider)
            ).run_sync("hi"),
        },
        {
            "structured by a schema": structured(ai.NativeOutput(Person)),
            "structured by JSON": structured(ai.PromptedOutput(Person)),
            "structured by a tool": structured(Person),
        },
        {
            "tools": lambda: caller.run_sync(TWICE).output,
            "tools, streamed": lambda: "".join(
                caller.run_stream_sync(TWICE).stream_text(delta=True, debounce_by=None)
            ),
        },
    )


LIBRARIES = {
    "openai": ("openai", open_openai),
    "langchain": ("langchain_openai", open_langchain),
    "llama_index": ("llama_index.llms.openai_like", open_llama_index),
    "litellm": ("litellm", open_litellm),
    "pydantic_ai": ("pydantic_ai", open_pydantic_ai),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TalkingPair:
    return talking(tmp_path_factory.mktemp("pair"), answer, TEMPLATE)


@pytest.fixture(scope="module")
def served(pair: TalkingPair) -> Iterator[Served]:
    with serving(pair, name=NAME) as server:
        yield server


OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # LiteLLM would fetch prices


def open_library(name: str, served: Served) -> Library:
    module, opened = LIBRARIES[name]
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in OFFLINE.items():
            patch.setenv(variable, value)
        pytest.importorskip(module)
    return opened(f"{served.url}/v1")


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_lines_of_the_page(served: Served, name: str) -> None:
    open_library(name, served)
    connection = {"OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": "none"}
    run = subprocess.run(
        [sys.executable, EXAMPLES / f"ask_{name}.py"],
        env=os.environ | OFFLINE | connection,
        capture_output=True,
        text=True,
        check=False,
    )
    says = "name='Paris' country='France'" if name == "pydantic_ai" else SAYS
    assert (run.stdout, run.returncode) == (f"{says}\n", 0), run.stderr


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_reply(served: Served, name: str) -> None:
    text, _ = open_library(name, served).ask([QUESTION])
    assert text == SAYS


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_stream(served: Served, name: str) -> None:
    pieces = open_library(name, served).stream([QUESTION])
    assert "".join(pieces) == SAYS
    assert sum(map(bool, pieces)) == len(SAYS)  # a byte a token, none of them held back


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_conversation_with_the_earlier_reply_as_it_was_returned(
    served: Served, pair: TalkingPair, name: str
) -> None:
    library = open_library(name, served)
    system = {"role": "system", "content": f"You speak through {name}."}
    _, message = library.ask([system, QUESTION])
    text, _ = library.ask([system, QUESTION, message, REQUEST])
    assert text == STORY
    turns = ("system", system["content"]), ("user", "hi"), ("assistant", SAYS), ("user", "a story")
    prompt = "".join(f"<|start|>{role}\n{content}<|end|>\n" for role, content in turns)
    assert prompt in pair.prompts_seen


REFUSALS = [
    ("openai", "responses", "This address does not exist."),
    ("langchain", "responses", "This address does not exist."),
    ("llama_index", "structured", "there are no tools to call"),
    ("llama_index", "completions", "This server accepts only conversations."),
    ("pydantic_ai", "responses", "This address does not exist."),
]


STRUCTURED = [
    ("openai", "structured"),
    *(
        ("langchain", call)
        for call in (
            *("structured", "structured by a schema", "structured by JSON"),
            "structured by a function",
        )
    ),
    ("litellm", "structured"),
    *(
        ("pydantic_ai", call)
        for call in ("structured by a schema", "structured by JSON", "structured by a tool")
    ),
    ("llama_index", "structured by a function"),
]

TOOL_CALLS = [
    *(("openai", call) for call in ("tools", "tools, streamed")),
    *(("langchain", call) for call in ("tools", "tools, streamed")),
    ("litellm", "tools"),
    *(("pydantic_ai", call) for call in ("tools", "tools, streamed")),
]


@pytest.mark.parametrize(("name", "call"), STRUCTURED)
def test_a_structured_reply(served: Served, name: str, call: str) -> None:
    assert open_library(name, served).structured[call]() == Person(name="Ann")


@pytest.mark.parametrize(("name", "call"), TOOL_CALLS)
def test_a_tool_is_called_and_its_result_answered(
    served: Served, pair: TalkingPair, name: str, call: str
) -> None:
    assert open_library(name, served).tools[call]() == "It is 42."
    assert any("<|start|>tool\n42<|end|>" in prompt for prompt in pair.prompts_seen)


@pytest.mark.parametrize(("name", "call", "words"), REFUSALS)
def test_a_client_shows_the_servers_reason(
    served: Served, name: str, call: str, words: str
) -> None:
    refused = open_library(name, served).refused[call]
    with pytest.raises(Exception, match=re.escape(words)) as caught:
        refused()
    assert caught.value.status_code in (400, 403, 404)
