"""What people tell the monitor: a rating of an answer, on disk before the answer 200, and that a new behaviour is accepted."""

import asyncio
import sqlite3
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from lm.serve.api.protocol import ApiError, Body, json_response, read
from lm.serve.store import Feedback

Text = Annotated[str, Field(max_length=20_000)]
RATINGS = {"up": 1, "down": -1, 1: 1, -1: -1}


class FeedbackRequest(Body):
    """id: of the answer. The user of the API key, if there is one, counts instead of `user`."""

    model_config = ConfigDict(extra="forbid")
    id: Annotated[Text, Field(min_length=1)]
    rating: Literal["up", "down"] | int
    choice: int = Field(0, ge=0, lt=1 << 16)
    comment: Text = ""
    correction: Text = ""
    user: Text = ""


class AcceptRequest(Body):
    checkpoint: str
    adapter: str


def router(watch) -> APIRouter:
    """Return the routes of a monitor.

    Feedback: 200, it is stored. 404: no such answer is known; answers are known for a while, and as long as the store keeps
    them. 503: the store cannot be written.
    """
    routes = APIRouter()

    @routes.post("/v1/feedback")
    async def give_feedback(request: Request) -> Response:
        body = await read(request, FeedbackRequest)
        if body.rating not in RATINGS:
            raise ApiError(400, 'rating: must be "up" or "down", or 1 or -1', param="rating")
        user = getattr(request.state, "user", "") or body.user
        feedback = Feedback(body.id, RATINGS[body.rating], body.choice, user, body.comment, body.correction)
        try:
            rated = await asyncio.wrap_future(watch.on_feedback(feedback))
        except LookupError:
            raise ApiError(404, f"no answer {body.id!r} is known, or it was deleted") from None
        except sqlite3.Error as error:
            raise ApiError(503, f"the store cannot be written: {error}") from None
        return json_response({"object": "feedback", "id": body.id, "number": rated.number, "stored": True})

    @routes.post("/v1/monitor/accept", include_in_schema=False)
    async def accept(request: Request) -> Response:
        body = await read(request, AcceptRequest)
        if not watch.accept(body.checkpoint, body.adapter):
            raise ApiError(404, "no such checkpoint and adapter is watched")
        return json_response({"accepted": True})

    return routes
