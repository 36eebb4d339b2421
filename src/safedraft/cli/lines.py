"""Lines of standard input: typed and edited in a terminal, or from a pipe."""

from __future__ import annotations

import sys
from contextlib import suppress


class LineReader:
    """Reads lines; the prompt is shown only where somebody types.

    Where the platform has ``readline``, the keys for editing and for earlier lines work, and a text
    of several lines that is pasted is one line until it is sent.
    """

    def __init__(self) -> None:
        self.typed = sys.stdin is not None and sys.stdin.isatty()
        self._shown = sys.stdout.isatty()
        if self.typed and self._shown:
            with suppress(ImportError):  # there is none on Windows
                import readline  # ``input`` uses it from now on

                readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self, prompt: str) -> str:
        """Read a line.

        Raises:
            EOFError: the input has ended.
            KeyboardInterrupt: Ctrl-C was typed.
        """
        if sys.stdin is None:
            raise EOFError
        if not self.typed:
            return input()
        try:
            if self._shown:
                return input(prompt)
            sys.stderr.write(prompt)  # standard output has the replies alone
            sys.stderr.flush()
            return input()
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n")  # the cursor is after the prompt
            raise
