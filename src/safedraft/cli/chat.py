"""``safedraft chat``: chat with a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from safedraft.cli import options
from safedraft.cli.models import ModelChoice, choose_models
from safedraft.cli.sampling import SamplingChoice, choose_sampling
from safedraft.core.errors import PromptTooLongError, SafeDraftError

if TYPE_CHECKING:
    from safedraft.core.config import SamplingParams
    from safedraft.pair import Pair
    from safedraft.text.messages import Message

_BLOCK = '"""'
"""A line that opens and closes a message of several lines."""

_HELLO = "Type a message, or /help. Ctrl-C stops a reply, Ctrl-D ends the chat."

_KEYS = {
    _BLOCK: "as a line of its own opens a message of several lines, and closes it",
    "//": "at the beginning of a message sends a message that begins with /",
    "Ctrl-C": "stops the reply, whose text so far stays; at the prompt it ends the chat",
    "Ctrl-D": "ends the chat",
}


@choose_models()
@choose_sampling("json_schema", max_new_tokens=512)
def chat(
    system: options.System = None,
    rule: options.Rule = None,
    *,
    sampling: SamplingChoice,
    models: ModelChoice,
) -> None:
    """Chat with a pair in the terminal; the conversation is kept.

    Type /help in the chat for its commands: they set the system prompt, begin the next reply, or
    start a new conversation. Ctrl-C stops a reply. Messages may also come from a pipe.

    [dim]safedraft chat --temperature 0.7[/]
    """
    parameters = sampling.parameters
    options.require_rule(rule)
    config = models.constants_of(rule) or None
    conversation = _Chat(models.load(rule), parameters, rule, config, system or None)
    try:
        conversation.run()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


class _Chat:
    """A conversation: replies go to standard output, everything else to standard error."""

    _messages: list[Message]
    _system: str | None
    _prefill: str

    def __init__(
        self,
        pair: Pair,
        sampling: SamplingParams,
        rule: str | None,
        config: Mapping[str, Any] | None,
        system: str | None,
    ) -> None:
        from safedraft.cli.lines import LineReader
        from safedraft.cli.render import make_console

        self._pair, self._sampling = pair, sampling
        self._rule, self._config = rule, config
        self._first_system = system
        self._input = LineReader()
        self._console, self._notes = make_console(), make_console(stderr=True)
        self.reset()

    def run(self) -> None:
        """Read messages and commands until the input ends."""
        from safedraft.cli.render import make_legend

        if self._input.typed:
            self._say(_HELLO)
        if self._console.is_terminal:
            self._notes.print(make_legend())
        while True:
            try:
                self._take(self._input.read("\nyou: ").strip())
            except EOFError:
                return
            except SafeDraftError as error:  # such as a message that is too long
                self._say(str(error), "red")

    def set_system(self, text: str) -> None:
        """Set the system prompt, or show it."""
        if text:
            self._require_fit(system=text)
            self._system = text
        self._say(
            f"System prompt: {self._system}" if self._system else "There is no system prompt."
        )

    def set_prefill(self, text: str) -> None:
        """Set the beginning of the next reply."""
        if text:
            self._require_fit(prefill=text)
        self._prefill = text
        self._say(f"The next reply begins: {text}" if text else "The next reply begins by itself.")

    def reset(self, text: str = "") -> None:
        """Return to the beginning of the chat."""
        self._messages = []
        self._system = self._first_system
        self._prefill = ""

    def show_help(self, text: str) -> None:
        """List the commands and keys."""
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, command in _COMMANDS.items():
            table.add_row(f"{name} {command.argument}".rstrip(), command.does, style="dim")
        for key, does in _KEYS.items():
            table.add_row(key, does, style="dim")
        self._notes.print(table)

    def quit(self, text: str) -> None:
        """End the chat."""
        raise typer.Exit

    def _take(self, line: str) -> None:
        """Send a message, or run a command."""
        if line == _BLOCK:
            line = self._read_block()
            if line.strip():
                self._send(line)
        elif line.startswith("/") and not line.startswith("//"):
            self._run_command(*line.partition(" ")[::2])
        elif line:
            self._send(line.removeprefix("/"))

    def _read_block(self) -> str:
        lines = []
        with suppress(EOFError):  # the end of the input closes a message as well
            while (line := self._input.read("...  ")).strip() != _BLOCK:
                lines.append(line)
        return "\n".join(lines)

    def _run_command(self, name: str, text: str) -> None:
        """Run a command.

        Raises:
            SafeDraftError: there is no such command, or it takes no text.
        """
        command = _COMMANDS.get(name)
        if command is None:
            *names, last = _COMMANDS
            listed = f"{', '.join(names)} and {last}"
            raise SafeDraftError(f"There is no command {name}, only {listed}.")
        if text.strip() and not command.argument:
            raise SafeDraftError(f"{name} takes no text.")
        command.run(self, text.strip())

    def _require_fit(self, *, system: str | None = None, prefill: str = "") -> None:
        """Check that the pair can have a system prompt or a prefill.

        Raises:
            SafeDraftError: a chat template leaves it out or does not allow it.
        """
        from safedraft.text.messages import conversation

        self._pair.prompts(conversation("Hello", prefill, system))

    def _send(self, text: str) -> None:
        """Send a message and write the reply; both are kept, also of a reply that is stopped.

        Raises:
            SafeDraftError: the message cannot be answered, such as if the context is full.
        """
        from safedraft.cli.render import format_summary
        from safedraft.cli.writing import write_reply
        from safedraft.text.messages import begun_text, conversation

        user: Message = {"role": "user", "content": text}
        messages = conversation([*self._messages, user], self._prefill, self._system)
        try:
            stream = self._pair.stream(
                messages, sampling=self._sampling, rule=self._rule, config=self._config
            )
        except PromptTooLongError as error:
            raise self._explain_full(error) from error
        with suppress(KeyboardInterrupt):
            write_reply(stream, begun_text(messages), self._console)
        reply = stream.result
        self._notes.print(format_summary(reply))
        if reply.finish_reason == "length" and len(reply.trace) < self._sampling.max_new_tokens:
            self._say("The context is full. Use /reset to start a new conversation.", "red")
        if reply.text or reply.finish_reason != "interrupted":
            answer: Message = {"role": "assistant", "content": self._prefill + reply.text}
            self._messages += [user, answer]
            self._prefill = ""

    def _explain_full(self, error: PromptTooLongError) -> SafeDraftError:
        if not self._messages:
            return error
        return SafeDraftError(
            f"The conversation is full: it has {error.tokens} tokens with this message, and the "
            f"pair has room for {error.context_length}. Use /reset to start a new one."
        )

    def _say(self, text: str, style: str = "dim") -> None:
        self._notes.print(text, style=style, markup=False)


@dataclass(frozen=True)
class _Command:
    run: Callable[[_Chat, str], None]
    argument: str
    does: str


_COMMANDS = {
    "/system": _Command(_Chat.set_system, "[TEXT]", "sets the system prompt, or shows it"),
    "/prefill": _Command(_Chat.set_prefill, "[TEXT]", "begins the next reply with TEXT"),
    "/reset": _Command(_Chat.reset, "", "starts a new conversation, as at the start of the chat"),
    "/help": _Command(_Chat.show_help, "", "shows this list"),
    "/quit": _Command(_Chat.quit, "", "ends the chat"),
}
