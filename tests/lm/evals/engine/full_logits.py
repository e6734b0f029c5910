"""The slow twin of lm/evals/engine/likelihood.py: full logits of one request at a time."""

import functools

import jax
import numpy as np
from flax import nnx

from lm.evals.engine.likelihood import Request, Scored, cut, dropless
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer


def reference(model: Transformer, request: Request, max_length: int) -> Scored:
    context, continuation = cut(request, max_length)
    read = [*context, *continuation][:-1]
    tokens, segments = np.zeros((2, 1, max_length), np.int32)
    tokens[0, : len(read)], segments[0, : len(read)] = read, 1
    logits_BTV = _logits(*nnx.split(dropless(model)), tokens, segments, segments * np.arange(max_length, dtype=np.int32))
    logits_TV = logits_BTV[0, len(context) - 1 : len(read)]
    logps_TV, targets_T = np.asarray(jax.nn.log_softmax(logits_TV)), np.asarray(continuation)
    return Scored(logps_TV[np.arange(len(targets_T)), targets_T], logps_TV.argmax(axis=1) == targets_T)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, params, tokens_BT, segments_BT, positions_BT):
    return nnx.merge(graph, params)(Inputs(tokens_BT, segments_BT, positions_BT))
