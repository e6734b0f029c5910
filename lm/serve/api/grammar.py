"""Constrain answers to a JSON schema, a regular expression or a grammar: llguidance tells which tokens may come next.

The limits make a grammar that is too costly an error of its request; it cannot hold up the engine for long.
"""

import functools
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import llguidance
import numpy as np

from data.text.tokenizer import Tokenizer
from lm.serve.api.protocol import ApiError, Sampled
from lm.serve.api.tools import LAYOUT

SIZE = 1 << 16  # characters of a grammar
# Units of llguidance's work: at most about 0.5 s before the first token, and 0.2 s at each other one.
LIMITS = {"initial_lexer_fuel": 50_000, "step_lexer_fuel": 20_000, "max_grammar_size": 60_000}
# What llguidance says when it reaches a limit.
COSTLY = ("lexer precomputation failed", "too many expressions", "Too many items", "Current row has", "fuel exhausted")
_building = threading.Lock()


class TokenGrammar:
    """A grammar for lm.infer.engine: the tokens that may come next, over the V ids of a model.

    stop_ids: where the grammar may end, these may come. param: the field of a request that asks for it. error: why the grammar
    gave up, if it did; then only these may come.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, vocab_size: int, ends: Sequence[int], stop_ids: Sequence[int], param: str
    ):
        self._matcher, self._V, self._ends, self._stops, self.param = matcher, vocab_size, list(ends), list(stop_ids), param

    def allowed(self) -> np.ndarray:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, bitorder="little")[: self._V].astype(bool)
        over = self._matcher.is_error() or bool(found[self._ends].any()) or not found.any()
        found[self._ends] = False
        if self._matcher.is_error():
            found[:] = False
        if over:
            found[self._stops] = True
        return found

    def accept(self, token: int) -> None:
        if token not in self._stops:
            self._matcher.consume_token(int(token))

    def copy(self) -> "TokenGrammar":
        return TokenGrammar(self._matcher.deep_copy(), self._V, self._ends, self._stops, self.param)

    @property
    def error(self) -> str:
        return _reason(self._matcher.get_error()) if self._matcher.is_error() else ""


class Grammars:
    """Makes grammars for one tokenizer and a model of V ids. ends: all ids that can end a text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Collection[int]):
        self._tokenizer, self._V, self._ends = tokenizer, vocab_size, sorted(ends)

    @functools.cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        """The tokens' bytes, which takes a second for 50,000."""
        names = {i: f"<row {i}>".encode() for i in range(self._tokenizer.vocab_size, self._V)}  # rows without a token
        names |= {i: symbol.encode() for symbol, i in self._tokenizer.controls.items()}
        tokens = [names.get(i) or self._tokenizer.decode_bytes([i]) for i in range(self._V)]
        wrapper = llguidance.TokenizerWrapper(_Spelled(self._tokenizer, tokens, sorted(names), self._ends[0]))
        return llguidance.LLTokenizer(wrapper, n_vocab=self._V, eos_token=self._ends)

    def make(self, body: Sampled, stop_ids: Sequence[int], calls: str = "") -> TokenGrammar:
        """Return the grammar that a request asks for. calls: grammar of the calls that its tool_choice asks for.

        Raises: ApiError if it is invalid or too costly, or if the request asks for several.
        """
        asked = {field: _of_form(form, field.partition(".")[0], kind) for field, (kind, form) in body.forms.items()}
        asked |= {"tool_choice": calls} if calls else {}
        param, grammar = next(iter(asked.items()))
        if len(asked) > 1:
            raise ApiError(400, f"{' and '.join(asked)}: ask for one form of the answer", param=param)
        if not stop_ids:
            raise ApiError(400, "an answer in a given form needs an end token: leave out ignore_eos", param="ignore_eos")
        if len(grammar) > SIZE:
            raise ApiError(400, f"{param}: a grammar of {len(grammar)} characters is longer than {SIZE}", param=param)
        with _building:
            vocabulary = self._vocabulary
        limits = llguidance.LLParserLimits(**LIMITS, verbose_errors=False)
        matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the costly part, here and not on the engine's thread
        if matcher.is_error():
            raise ApiError(400, f"{param}: {_reason(matcher.get_error())}", param=param, code="invalid_grammar")
        return TokenGrammar(matcher, self._V, self._ends, stop_ids, param)


def _of_form(form: Any, param: str, kind: str) -> str:
    """Return llguidance's grammar of a form. kind: of `Sampled.forms`. Raises: ApiError."""
    if kind == "json":
        try:
            schema = json.loads(form) if isinstance(form, str) else form
            if not isinstance(schema, Mapping):
                raise ValueError("a schema must be a JSON object")
            return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=LAYOUT)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"{param}: {error}", param=param) from None
    if kind == "choice" and not (form and all(form)):
        raise ApiError(400, f"{param}: give one or more texts, none of them empty", param=param)
    try:
        if kind == "regex":
            return llguidance.LLMatcher.grammar_from_regex(form)
        return llguidance.grammar_from(kind, json.dumps(list(form)) if kind == "choice" else form)
    except (ValueError, RecursionError) as error:  # a lone surrogate is a ValueError
        raise ApiError(400, f"{param}: {_reason(str(error))}", param=param, code="invalid_grammar") from None


def _reason(text: str) -> str:
    """Return what llguidance says of a grammar on one line. It repeats the grammar, whose own error comes after "error: "."""
    if "NoExtensionBias" in text:
        return "no text fits it"
    if any(words in text for words in COSTLY):
        return "it is too costly to check; make it simpler"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["invalid"]
    lines = [
        line.replace("Failed to convert the grammar from GBNF to Lark:", "it is no grammar in Lark or GBNF:") for line in lines
    ]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (named or lines)[0][:300]


class _Spelled:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special_token_ids: list[int], end: int):
        self.tokens, self.special_token_ids, self.eos_token_id, self.bos_token_id = tokens, special_token_ids, end, None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"))
