"""POST /v1/feedback: a person's rating of an answer, on disk before the answer 200."""

import asyncio
import sqlite3
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from lm.serve.store import Feedback

LONGEST = 20_000  # characters of a comment and of a correction
MAX_BYTES = 200_000  # of a request
RATINGS = {"up": 1, "down": -1, 1: 1, -1: -1}


def router(watch) -> APIRouter:
    """Return the route.

    The body: {"id": id of the answer, "rating": "up" or "down", "choice": 0, "comment": "", "correction": "a better answer",
    "user": ""}; the first two are needed. The user of the API key, if there is one (request.state.user), counts instead of the
    body's. 200: it is stored. 400, 415: the body is invalid. 404: no such answer is known; answers are known for a while, and
    as long as the store keeps them. 503: the store cannot be written.
    """
    routes = APIRouter()

    @routes.post("/v1/feedback")
    async def give_feedback(request: Request) -> JSONResponse:
        if int(request.headers.get("content-length") or 0) > MAX_BYTES:
            return _error(413, f"a body has at most {MAX_BYTES} bytes")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _error(415, "send the header Content-Type: application/json")
        try:
            feedback = parsed(await request.json())
            feedback = feedback._replace(user=getattr(request.state, "user", "") or feedback.user)
        except (ValueError, RecursionError) as error:
            return _error(400, str(error) or "the body is not JSON")
        try:
            rated = await asyncio.wrap_future(watch.on_feedback(feedback))
        except LookupError:
            return _error(404, f"no answer {feedback.exchange!r} is known, or it was deleted")
        except sqlite3.Error as error:
            return _error(503, f"the store cannot be written: {error}")
        return JSONResponse({"object": "feedback", "id": feedback.exchange, "number": rated.number, "stored": True})

    return routes


def parsed(body: Any) -> Feedback:
    """Return the feedback in a body. Raises: ValueError that says what is wrong."""
    known = {"id", "rating", "choice", "comment", "correction", "user"}
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    if unknown := sorted(set(body) - known):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    rating = body.get("rating")
    if isinstance(rating, bool) or not isinstance(rating, str | int | float) or rating not in RATINGS:
        raise ValueError('rating must be "up" or "down", or 1 or -1')
    texts = {key: body.get(key, "") for key in ("id", "comment", "correction", "user")}
    for key, text in texts.items():
        if not isinstance(text, str) or len(text) > LONGEST:
            raise ValueError(f"{key} must be text of at most {LONGEST} characters")
    choice = body.get("choice", 0)
    if not isinstance(choice, int) or isinstance(choice, bool) or not 0 <= choice < 1 << 16:
        raise ValueError("choice must be the number of a choice")
    if not texts["id"]:
        raise ValueError("id must name an answer")
    return Feedback(texts["id"], RATINGS[rating], choice, texts["user"], texts["comment"], texts["correction"])


def _error(status: int, message: str) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)
