"""``safedraft chat``: chat with a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from safedraft.cli import options
from safedraft.cli.models import ModelChoice, choose_models
from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from rich.console import Console

    from safedraft.core.config import SamplingParams
    from safedraft.pair import Pair
    from safedraft.text.messages import Message

_HELP = (
    "/reset starts a new conversation, /quit (or Ctrl-D) leaves; Ctrl-C stops a reply and leaves."
)


@choose_models()
def chat(
    system: options.System = None,
    rule: options.Rule = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    stop_token_ids: options.StopTokenIds = None,
    *,
    models: ModelChoice,
) -> None:
    """Chat with a pair in the terminal; the conversation is kept.

    [dim]safedraft chat --temperature 0.7[/]
    """
    from rich.console import Console

    sampling = options.sampling_params(
        max_new_tokens, temperature, top_k, top_p, seed, stop, stop_token_ids
    )
    options.require_rule(rule)
    loaded = models.load()
    console = Console(highlight=False, soft_wrap=True)
    console.print(_HELP, style="dim")
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while True:
        try:
            text = console.input("[bold]you:[/] ").strip()
        except (EOFError, RuntimeError):  # the input has ended, or stdin is closed
            console.print()
            return
        match text:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                messages = list(opening)
            case "/help":
                console.print(_HELP, style="dim")
            case _:
                turn: list[Message] = [{"role": "user", "content": text}]
                try:
                    answer = _answer(loaded, messages + turn, sampling, rule, console)
                except (
                    SafeDraftError
                ) as error:  # such as a message that is too long: the chat continues
                    console.print(str(error), style="red", markup=False)
                else:
                    messages += [*turn, {"role": "assistant", "content": answer}]


def _answer(
    pair: Pair,
    messages: list[Message],
    sampling: SamplingParams,
    rule: str | None,
    console: Console,
) -> str:
    from safedraft.cli.render import format_summary, print_token

    stream = pair.stream(messages, sampling=sampling, rule=rule)
    try:
        for token in stream:
            print_token(token, console)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        stream.close()
        console.print()
        console.print(format_summary(stream.result))
    return stream.result.text
