"""/v1/embeddings: vectors of texts by the model itself, of unit length.

The vector of a text is the last hidden state after a prompt that asks for it in one word; that of token ids is the last hidden
state after these.
"""

import base64
from typing import Any

import numpy as np

from lm.infer.engine.request import Request
from lm.infer.prompts import IN_ONE_WORD
from lm.serve.api.protocol import ApiError, EmbeddingRequest
from lm.serve.api.service import Service, timed_out

MAX_INPUTS = 2048  # as in OpenAI's API


def plan(service: Service, body: EmbeddingRequest, user: str = "") -> list[Request]:
    """Return a request of the engine for each input, whoever asks. Raises: ApiError."""
    adapter, D, inputs = service.adapter_of(body.model), service.engine.config.embed_dim, body.inputs
    if body.dimensions not in (None, D):
        raise ApiError(400, f"dimensions: the vectors of this model have {D}", param="dimensions")
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise ApiError(400, f"input: give 1 to {MAX_INPUTS} texts or lists of token ids, not {len(inputs)}", param="input")
    for given in inputs:
        service.check_size([given], "input")
    tokenizer = service.tokenizer
    ids = [tokenizer.prompt_ids(IN_ONE_WORD.format(some)) if isinstance(some, str) else some for some in inputs]
    return [service.prepared(Request(tuple(row), 1, 0.0, adapter=adapter, embeds=True)) for row in ids]


async def whole(service: Service, body: EmbeddingRequest, requests: list[Request]) -> dict[str, Any]:
    """Return the answer. Raises: ApiError."""
    vectors: dict[int, np.ndarray] = {}
    for begin in range(0, len(requests), service.limits.max_choices):  # not the whole queue at once
        async with service.run(requests[begin : begin + service.limits.max_choices]) as run:
            while len(vectors) < begin + len(run.handles):
                n, event = await run.next()
                if event.finish == "timeout":
                    raise timed_out()
                if event.hidden_D is None:
                    raise ApiError(500, event.error or "the request was cancelled", code=event.finish)
                vectors[begin + n] = event.hidden_D / max(np.linalg.norm(event.hidden_D), 1e-9)
    data = [{"object": "embedding", "index": n, "embedding": _written(vectors[n], body)} for n in range(len(requests))]
    count = sum(len(request.prompt) for request in requests)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "model": body.model or service.name, "data": data, "usage": usage}


def _written(vector_D: np.ndarray, body: EmbeddingRequest) -> str | list[float]:
    if body.encoding_format == "base64":
        return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
    return vector_D.tolist()
