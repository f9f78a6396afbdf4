"""Answers that take a while: a stream of events, or one JSON at the end. Both end what is drawn when nobody listens any longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
from anyio import to_thread
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from dalle.web.guard import refusal
from dalle.web.job import Job
from dalle.web.telling import drawing_json, event_text

_ALIVE_S = 10
"""After which a silent stream says that it is there, so that no proxy ends it."""


class Answer:
    """An answer to a request that is drawn.

    Args:
        job: the request, which waits for its turn
        leave: is told the job when nobody waits for it any longer
    """

    def __init__(self, job: Job, leave: Callable[[Job], None]):
        self.job, self.leave = job, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as group:

                async def listen() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(listen)
                await self.answer(scope, receive, send)
                group.cancel_scope.cancel()
        finally:
            self.leave(self.job)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """All that is sent."""
        raise NotImplementedError


class Stream(Answer):
    """Server-sent events, as they come."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        order = self.job.order
        accepted = {"model": order.ask.model, "caption": order.ask.caption, "n": order.ask.n, "seed": order.ask.seed}
        await say(event_text("accepted", {**accepted, "chunk": order.sampling.chunk, "notes": order.notes}))
        event = ""
        while event not in ("done", "error"):
            with anyio.move_on_after(_ALIVE_S) as limit:
                event, values = await self.job.next_event()
            if limit.cancelled_caught:
                await say(b": drawing\n\n")
                continue
            if event == "candidates":
                values = await to_thread.run_sync(self._candidates, values)
            await say(event_text(event, values))
        await say(b"", more=False)

    def _candidates(self, values: dict[str, Any]) -> dict[str, Any]:
        told = [{**drawing_json(d, self.job.order), "same_as": same} for d, same in values["drawings"]]
        return {**values, "drawings": told}


class Whole(Answer):
    """One JSON, when all is drawn."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        event = ""
        while event not in ("done", "error"):
            event, values = await self.job.next_event()
        if event == "error":
            await refusal(values["error"], values["status"])(scope, receive, send)
            return
        order = self.job.order

        def tell() -> dict[str, Any]:
            drawings = [drawing_json(drawing, order) for drawing in self.job.answer]
            about = {"model": order.ask.model, "caption": order.ask.caption, "notes": order.notes}
            return {**about, "drawings": drawings, **{name: values[name] for name in ("drawn", "seconds", "stopped")}}

        await JSONResponse(await to_thread.run_sync(tell))(scope, receive, send)
