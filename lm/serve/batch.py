"""Answer a file of requests in OpenAI's batch format: {"custom_id", "method", "url", "body"} a line.

A line of results is {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}, in the order in which the
answers came. Run the same command again after a kill: requests whose answers are whole in the file are not asked again.
"""

import asyncio
import contextlib
import functools
import json
import uuid
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.files.saving import replacing
from lm.progress import progress
from lm.serve.api import chat, completions, embeddings, protocol, responses
from lm.serve.api.protocol import ApiError, decoded, encoded, parsed
from lm.serve.api.service import BUSY, Service

ROUTES = {  # how a body is read, and the module that plans and answers it
    "/v1/completions": (functools.partial(parsed, protocol.CompletionRequest), completions),
    "/v1/chat/completions": (functools.partial(parsed, protocol.ChatRequest), chat),
    "/v1/responses": (lambda body: responses.asked(parsed(protocol.ResponseRequest, body)), responses),
    "/v1/embeddings": (functools.partial(parsed, protocol.EmbeddingRequest), embeddings),
}
USER = "batch"
AGAIN = (408, 429, 500, 503)  # answers that another run may better
AHEAD = 2  # requests that wait, for each that is decoded


def answer_file(service: Service, requests: Path, results: Path, rows: int) -> int:
    """Answer the requests that have no answer yet. Return the exit code: 1 if any answer in the file is an error.

    Raises: UserError for a line that is no request, or an id that comes twice.
    """
    asked = read_requests(requests)
    done = read_results(results)
    todo = {name: line for name, line in asked.items() if name not in done}
    with results.open("ab") as file, progress("answers", len(asked), done=len(asked) - len(todo)) as bar:

        def tell(row: dict[str, Any]) -> None:
            file.write(encoded(row) + b"\n")
            file.flush()
            done[row["custom_id"]] = row["response"]["status_code"]
            bar.update(1)

        asyncio.run(_answer_all(service, todo, rows * (1 + AHEAD), tell))
    failed = [name for name in asked if done[name] != 200]
    if failed:
        print(f"{len(failed)} of {len(asked)} requests failed, the first is {failed[0]!r}: see {results}", flush=True)
    return 1 if failed else 0


def read_requests(path: Path) -> dict[str, dict[str, Any]]:
    """Return {custom_id: request}. Raises: UserError with the line."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"batch={path}:{number}"
        try:
            value = decoded(line)
        except ApiError as error:
            raise UserError(f"{where}: {error.message}; write one request a line") from None
        if not isinstance(value, dict) or not isinstance(value.get("custom_id"), str):
            raise UserError(f'{where}: write {{"custom_id": …, "method": "POST", "url": …, "body": {{…}}}}')
        if value["custom_id"] in found:
            raise UserError(f"{where}: the custom_id {value['custom_id']!r} comes twice; give each request its own")
        if value.get("method", "POST") != "POST" or value.get("url") not in ROUTES:
            raise UserError(f"{where}: method must be POST, and url one of {', '.join(ROUTES)}")
        if not isinstance(value.get("body"), dict) or value["body"].get("stream"):
            raise UserError(f"{where}: body must be a JSON object, without stream")
        found[value["custom_id"]] = value
    if not found:
        raise UserError(f"batch={path} has no requests")
    return found


def read_results(path: Path) -> dict[str, int]:
    """Return {custom_id: status} of the answers to keep. Only these stay in the file: a killed run may have cut a line."""
    if not path.exists():
        return {}
    kept: dict[str, tuple[int, bytes]] = {}
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if (status := int(row["response"]["status_code"])) not in AGAIN:
                kept[row["custom_id"]] = status, line
    with replacing(path, "wb") as file:
        file.writelines(line + b"\n" for _, line in kept.values())
    return {name: status for name, (status, _) in kept.items()}


async def _answer_all(service: Service, todo: dict[str, dict[str, Any]], most: int, tell) -> None:
    waiting = iter(todo.items())

    async def work() -> None:
        for name, line in waiting:
            status, body = await _answered(service, line)
            response = {"status_code": status, "request_id": body.get("id") or uuid.uuid4().hex, "body": body}
            tell({"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": name, "response": response, "error": None})

    async with asyncio.TaskGroup() as group:
        for _ in range(min(most, len(todo))):
            group.create_task(work())


async def _answered(service: Service, line: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    read, route = ROUTES[line["url"]]
    while True:
        try:
            body = read(line["body"])
            planned = await service.call(getattr(body, "messages", ()), route.plan, body, USER)
            return 200, await route.whole(service, body, planned)
        except ApiError as error:
            if error.code != "queue_full":
                return error.status, error.body()
            await asyncio.sleep(BUSY)
        except UserError as error:
            return 400, ApiError(400, str(error)).body()
