"""The page at ``/playground``: static files, whose scripts call the server's public API.

In ``static``, in reading order: ``index.html``; ``page.css``; ``api.js`` the requests; ``trace.js``
what a trace says, in words; ``dom.js``; ``chart.js`` the bins; ``card.js`` a reply; ``details.js``
what is pointed at; ``settings.js`` sampling and constants; ``snippet.js`` a request as code;
``page.js`` the turns, Send and Stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Playground(StaticFiles):
    """The files of the page; its policy lets the page connect to this server only."""

    def __init__(self) -> None:
        super().__init__(directory=Path(__file__).parent / "static", html=True)

    def file_response(self, *args: Any, **settings: Any) -> Response:
        """Return a file, or that it has not changed."""
        response = super().file_response(*args, **settings)
        response.headers.update(_HEADERS)
        return response
