"""The actions of the page's buttons, and the function that adds the page to a server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from safedraft.core.errors import SafeDraftError
from safedraft.server.errors import APIError, log_unexpected
from safedraft.server.gate import PAGE
from safedraft.server.playground import controls, drawing
from safedraft.server.playground.layout import EXAMPLES, Layout
from safedraft.server.playground.page_gate import PageGate
from safedraft.server.playground.snippet import write_snippet
from safedraft.server.playground.turn import (
    Column,
    PageRequest,
    Turn,
    build_messages,
    describe_outcome,
    iterate_ticks,
)
from safedraft.server.scheduler import Job
from safedraft.server.service import Service

_HERE = Path(__file__).parent
_MAX_SESSIONS = 64  # number of kept conversations; the oldest are dropped
_MAX_CLICKS = 64  # number of clicks that may wait or run besides the scheduler's replies
_ICON = (
    '<link rel="icon" href="data:image/svg+xml,'
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%2300815e'/%3E"
    "%3Cpath d='M4 5h8M4 8h5M4 11h8' stroke='white' stroke-width='1.6'/%3E%3C/svg%3E\">"
)

Update = dict[Any, Any]
"""New values of components."""


def mount_playground(app: FastAPI, service: Service) -> None:
    """Add the page to a server, whose scheduler and limits also apply to the page."""
    gr.mount_gradio_app(
        app,
        Playground(service).blocks,
        PAGE,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css_paths=_HERE / "page.css",
        head=f"{_ICON}<script>{(_HERE / 'page.js').read_text('utf-8')}</script>",
    )
    app.add_middleware(PageGate, stopped=service.scheduler.stopped)


def _theme() -> gr.themes.Base:
    """Return a theme with fonts of the visitor's machine, so that none is downloaded."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ).set(  # darker than Gradio's own, for contrast
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


class Playground:
    """The page of one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._running: list[tuple[str | None, Job]] = []
        """Running replies with the sessions that they belong to."""
        with gr.Blocks(title="SafeDraft playground", analytics_enabled=False) as self.blocks:
            self._page = Layout(service)
            self._connect()
        self.blocks.state_session_capacity = _MAX_SESSIONS
        limits = service.settings.limits
        # A click on Stop must not wait for replies.
        self.blocks.max_threads = limits.active + limits.waiting + _MAX_CLICKS
        self.blocks.queue(api_open=False, max_size=_MAX_CLICKS)

    def _connect(self) -> None:
        page = self._page
        # Gradio's queue is not limited, since the scheduler has its own.
        private: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        settings = [page.compare, *page.sampling, *page.constants]
        shown = [
            page.turns, page.past, page.question, page.replies, page.other, page.figures,
            page.said, page.chart, page.other_figures, page.other_said, page.prompt, page.prefill,
            page.send, page.stop, page.again, page.clear, page.status, page.code,
        ]  # fmt: skip
        gr.on(
            [page.send.click, page.prompt.submit],
            self.answer,
            [page.turns, page.prompt, page.prefill, *settings],
            shown,
            **private,
        )
        page.again.click(self.answer_again, [page.turns, *settings], shown, **private)
        page.stop.click(self.stop, **private)
        page.clear.click(self.clear, None, shown, **private)
        for button, example in zip(page.examples, EXAMPLES, strict=True):
            texts = json.dumps([example.prompt, example.prefill])
            button.click(
                None, None, [page.prompt, page.prefill], js=f"() => {texts}", queue=False, **private
            )
        self.blocks.unload(self.stop)

    async def answer(
        self, request: gr.Request, turns: list[Turn], prompt: str, prefill: str, *settings: Any
    ) -> AsyncGenerator[Update]:
        """Generate the reply to ``prompt`` and update the page; errors are shown on the page."""
        frames = self._answer(request, turns, prompt, prefill, settings)
        try:
            async with aclosing(frames):
                async for frame in frames:
                    yield frame
        except Exception as error:  # Gradio would also log its message
            log_unexpected(error)
            problem = drawing.draw_problem("the page failed; the server's log says where")
            yield self._allow_message() | {self._page.status: problem}

    async def _answer(
        self,
        request: gr.Request,
        turns: list[Turn],
        prompt: str,
        prefill: str,
        settings: Sequence[Any],
    ) -> AsyncGenerator[Update]:
        try:
            page_request = self._read(turns, prompt, prefill, settings)
            own = self._service.pair.rule
            rules = [own, "target_only"] if page_request.compare else [own]
            jobs = await self._service.page(
                page_request.messages, page_request.sampling, page_request.config, rules
            )
        except (APIError, SafeDraftError) as error:
            yield {self._page.status: drawing.draw_problem(str(error))}
            return
        running = [(request.session_hash, job) for job in jobs]
        self._running += running
        columns = [Column(job, prefill) for job in jobs]
        try:
            yield self._show_start(turns, page_request)
            async with aclosing(iterate_ticks(columns)) as growing:
                async for _ in growing:
                    yield self._show_progress(page_request, columns)
            yield self._show_end(turns, page_request, columns)
        finally:  # also if the visitor leaves
            for item in running:
                item[1].give_up()
                self._running.remove(item)

    async def answer_again(
        self, request: gr.Request, turns: list[Turn], *settings: Any
    ) -> AsyncGenerator[Update]:
        """Generate the last reply again, with the present settings."""
        *before, last = turns
        again = self.answer(request, before, last.prompt, last.prefill, *settings)
        async with aclosing(again) as frames:
            async for frame in frames:
                yield frame

    async def stop(self, request: gr.Request) -> None:
        """End the replies of a visitor at the next block."""
        for session, job in self._running:
            if session == request.session_hash:
                job.give_up()

    def clear(self) -> Update:
        """Start a new conversation."""
        page = self._page
        return {
            page.turns: [],
            page.past: "",
            page.question: "",
            page.replies: gr.update(visible=False),
            page.again: gr.update(interactive=False),
            page.status: "",
        }

    def _read(
        self, turns: Sequence[Turn], prompt: str, prefill: str, settings: Sequence[Any]
    ) -> PageRequest:
        compare, *others = settings
        return PageRequest(
            prompt,
            prefill,
            build_messages(turns, prompt, prefill, thinks=self._service.pair.thinks),
            controls.read_sampling(*others[:3]),
            controls.read_constants(
                self._service.pair.config, controls.choose_sliders(self._service.pair), others[3:]
            ),
            bool(compare),
        )

    def _show_start(self, turns: Sequence[Turn], page_request: PageRequest) -> Update:
        page, service = self._page, self._service
        return {
            page.past: "".join(turn.drawn for turn in turns),
            page.question: drawing.draw_question(page_request.prompt),
            page.replies: gr.update(visible=True),
            page.other: gr.update(visible=page_request.compare),
            page.prompt: "",
            page.prefill: "",
            page.send: gr.update(interactive=False),
            page.stop: gr.update(interactive=True),
            page.again: gr.update(interactive=False),
            page.clear: gr.update(interactive=False),
            page.status: "Decoding …",
            page.code: drawing.draw_code(write_snippet(service.pair, page_request)),
        }

    def _show_progress(self, page_request: PageRequest, columns: Sequence[Column]) -> Update:
        page, ours = self._page, columns[0]
        frame = {
            page.figures: ours.figures,
            page.said: ours.drawn,
            page.chart: drawing.draw_chart(ours.bins, page_request.config.bin_size),
        }
        for other in columns[1:]:
            frame |= {page.other_figures: other.figures, page.other_said: other.drawn}
        return frame

    def _show_end(
        self, turns: Sequence[Turn], page_request: PageRequest, columns: Sequence[Column]
    ) -> Update:
        page, ours = self._page, columns[0]
        drawn = drawing.draw_question(page_request.prompt) + drawing.draw_reply(ours.drawn)
        turn = Turn(page_request.prompt, page_request.prefill, ours.job.reply.text, drawn)
        return self._allow_message() | {
            page.turns: [*turns, turn],
            page.again: gr.update(interactive=True),
            page.status: describe_outcome(columns),
        }

    def _allow_message(self) -> Update:
        """Enable the controls for the next message."""
        page = self._page
        return {
            page.send: gr.update(interactive=True),
            page.stop: gr.update(interactive=False),
            page.clear: gr.update(interactive=True),
        }
