"""Replies as they stream: each token has its color, and words move to the next line whole."""

from __future__ import annotations

import re
from itertools import accumulate

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from safedraft.cli.render import choose_style, strip_control_characters
from safedraft.text.stream import Stream

_PIECES = re.compile(r"\s|\S+")
_TAB = 8


class WordWriter:
    """Writes text to a terminal piece by piece; a word is shown as soon as it has ended.

    A word that does not fit into its line begins the next one. Characters of double width, such as
    those of Chinese, are words of their own.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0
        self._space = ""
        self._word = Text()

    def write(self, text: str, style: str) -> None:
        """Write a piece of text, which may end inside a word."""
        for piece in _PIECES.findall(strip_control_characters(text)):
            if piece == "\n":
                self.end_line()
            elif piece.isspace():
                self._end_word()
                self._space += self._expand(piece)
            elif cell_len(piece) == len(piece):
                self._word.append(piece, style)
            else:
                self._append_wide(piece, style)

    def end_line(self) -> None:
        """Show the last word and begin a new line."""
        self._end_word()
        self._begin_line()

    def _append_wide(self, piece: str, style: str) -> None:
        for character in piece:
            if cell_len(character) > 1:
                self._end_word()
            self._word.append(character, style)
            if cell_len(character) > 1:
                self._end_word()

    def _expand(self, space: str) -> str:
        if space != "\t":
            return space
        return " " * (_TAB - (self._column + len(self._space)) % _TAB)

    def _end_word(self) -> None:
        if not self._word:
            return
        width, needed = max(self._console.width, 1), len(self._space) + self._word.cell_len
        if self._column and self._column + needed > width:
            self._begin_line()
        piece = Text(self._space) + self._word
        self._space, self._word = "", Text()  # before Ctrl-C can come: no word is shown twice
        ends = accumulate(map(len, chop_cells(piece.plain, width)))
        lines = piece.divide(list(ends)[:-1])  # a word may be longer than a line
        self._show(Text("\n").join(lines))
        self._column += lines[-1].cell_len

    def _begin_line(self) -> None:
        self._show(Text("\n"))
        self._column, self._space = 0, ""

    def _show(self, text: Text) -> None:
        self._console.print(text, end="", soft_wrap=True)
        self._console.file.flush()


class PlainWriter:
    """Writes text exactly as it is, for files and other programs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str, style: str) -> None:
        """Write a piece of text, without its style."""
        if not self._console.quiet:
            self._console.file.write(text)
            self._console.file.flush()

    def end_line(self) -> None:
        """Begin a new line."""
        self.write("\n", "")


def write_reply(stream: Stream, begun: str, console: Console) -> None:
    """Write the tokens of a stream as they come, and close it, also after an interruption.

    Args:
        stream: the stream.
        begun: the beginning of the reply, which exists already; only terminals show it.
        console: the output.
    """
    writer = WordWriter(console) if console.is_terminal else PlainWriter(console)
    if console.is_terminal:
        writer.write(begun, "dim italic")
    shown = 0
    try:
        for shown, token in enumerate(stream, 1):  # noqa: B007
            writer.write(token.text, choose_style(token))
    finally:
        stream.close()
        for token in stream.result.trace[shown:]:  # held back until then, as a stop string may be
            writer.write(token.text, choose_style(token))
        writer.end_line()
