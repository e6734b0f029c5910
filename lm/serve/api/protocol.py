"""The requests of the API, OpenAI's fields and those that vLLM adds, and its errors. Fields of neither are ignored, as by both,
and the log names them once.

A field that is null has its default. An error is {"error": {"message", "type", "param", "code"}}, as OpenAI's.
"""

import asyncio
import json
import logging
import math
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from lm.files.untrusted import shown

MAX_CHOICES, MAX_STOPS, STOP_LENGTH, MAX_LIKELY = 128, 16, 512, 20
LARGE = 1 << 16  # bytes of a body that take long to parse
DEPTH = 64  # of nested lists and objects in a request
MAX_IGNORED = 20  # names of fields that the log tells of, each once
_ignored: set[str] = set()
LOG = logging.getLogger("lm.serve")
# Most tokens of a thought by `reasoning_effort`, as in Gemini's OpenAI-compatible API; "none": the template is told so, too.
EFFORTS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
OBJECT = {"type": "object"}  # JSON schema of any object

TYPES = {  # of errors; others are "invalid_request_error", or from 500 on "server_error"
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _stops(given: Any) -> Any:
    """Check stop strings in words that name the limits. Raises: ValueError."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("give a text or a list of texts")
    if len(texts) > MAX_STOPS or max(map(len, texts), default=0) > STOP_LENGTH:
        raise ValueError(f"give at most {MAX_STOPS} texts, each of at most {STOP_LENGTH} characters")
    return given


Ids = list[Annotated[int, Field(ge=0)]]


class ApiError(Exception):
    """An answer other than 200. retry: seconds after which the client may ask again, for the header Retry-After."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: float = 0.0):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    def body(self) -> dict[str, Any]:
        type_ = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": type_, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = {"Retry-After": str(math.ceil(self.retry))} if self.retry else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return json_response(self.body(), self.status, headers)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encoded(value), status, headers, media_type="application/json")


def encoded(value: Any) -> bytes:
    """Return JSON in UTF-8. Lone surrogates, which a client may send, become question marks. Raises: ValueError for NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


class Body(BaseModel):
    """What a client sends. Nothing is converted: "1" is no number, and NaN and infinity are refused."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """include_usage: send a last chunk with the counts of tokens. continuous_usage_stats: send them with every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Structured(Body):
    """One of these constrains the answer (vLLM's structured_outputs)."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # Lark or GBNF
    json_object: bool | None = None


class Sampled(Body):
    """The fields that both kinds of completions have."""

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[str | list[str], BeforeValidator(_stops)] = []
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    user: str = ""
    # vLLM's
    top_k: int = Field(0, ge=-1, lt=2**31)  # 0 and −1: off
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stop_token_ids: Annotated[Ids, Field(max_length=MAX_STOPS)] = []
    include_stop_str_in_output: bool = False
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: Structured | None = None

    @property
    def forms(self) -> dict[str, tuple[str, Any]]:
        """Return {field: (kind, form)} of fields that ask for a form of the answer; kind: json, regex, choice or grammar."""
        kinds, structured = ("json", "regex", "choice", "grammar"), self.structured_outputs
        asked = {f"guided_{kind}": (kind, getattr(self, f"guided_{kind}")) for kind in kinds}
        if structured is not None:
            own = structured.model_dump(by_alias=True)
            asked |= {f"structured_outputs.{kind}": (kind, own[kind]) for kind in kinds}
            asked["structured_outputs.json_object"] = "json", OBJECT if structured.json_object else None
        return {field: form for field, form in asked.items() if form[1] is not None}

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop))


def listed(given: str | list) -> list:
    """Return texts or lists of token ids as a list, even of one."""
    return [given] if isinstance(given, str) or bool(given) and isinstance(given[0], int) else given


class CompletionRequest(Sampled):
    prompt: str | Ids | list[str] | list[Ids]
    suffix: str | None = None
    max_tokens: int = Field(16, ge=0)  # 0: score the prompt, with echo
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LIKELY)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Return the prompts as a list, even of one."""
        return listed(self.prompt)


class Function(Body):
    model_config = ConfigDict(extra="allow")
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class Named(Body):
    name: str


class ToolChoice(Body):
    type: Literal["function"]
    function: Named


class JsonSchema(Body):
    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Sampled):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LIKELY)
    tools: Annotated[list[Tool], Field(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    thinking_token_budget: int | None = Field(None, ge=0)  # vLLM's; it goes before reasoning_effort
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @property
    def forms(self) -> dict[str, tuple[str, Any]]:
        asked, form = super().forms, self.response_format
        if form is not None and form.type == "json_schema" and form.json_schema is None:
            raise ApiError(400, "response_format: json_schema is missing", param="response_format")
        if form is not None and form.type != "text":
            asked["response_format"] = "json", form.json_schema.schema_ if form.type == "json_schema" else OBJECT
        return asked


class ResponseRequest(Body):
    """Fields with the names of a chat's are checked there."""

    model: str | None = None
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    text: dict[str, Any] = {}
    reasoning: dict[str, Any] = {}
    previous_response_id: str | None = None
    store: bool = False
    metadata: dict[str, Any] = {}
    user: str = ""


class EmbeddingRequest(Body):
    model: str | None = None
    input: str | Ids | list[str] | list[Ids]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str = ""

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """Return the inputs as a list, even of one."""
        return listed(self.input)


class TokenizeRequest(Body):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False
    tools: list[Tool] = []
    chat_template_kwargs: dict[str, Any] = {}


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Ids


class LoadAdapter(Body):
    """lora_path: a folder in `adapters.dir`; default: the one with the adapter's name."""

    lora_name: str
    lora_path: str | None = None


class UnloadAdapter(Body):
    lora_name: str


Model = TypeVar("Model", bound=BaseModel)


async def read(request: Request, model: type[Model]) -> Model:
    """Return the body of a request. Raises: ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also what keeps the pages of other sites from posting here
        raise ApiError(415, "send the header Content-Type: application/json")
    body = await request.body()
    if len(body) > LARGE:  # not on the event loop: others wait for it
        return await asyncio.to_thread(lambda: parsed(model, decoded(body)))
    return parsed(model, decoded(body))


def decoded(body: bytes) -> Any:
    """Return the JSON of a body. Raises ApiError if it is not JSON in UTF-8, or nested too deeply."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ApiError(400, f"the body is nested more than {DEPTH} deep") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    level: list[Any] = [value]
    for _ in range(DEPTH):
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [item for items in nested for item in items]
        if not level:
            return value
    raise ApiError(400, f"the body is nested more than {DEPTH} deep")


def parsed(model: type[Model], value: Any) -> Model:
    """Return the request. Raises ApiError that names the first wrong field."""
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        request = model.model_validate({key: item for key, item in value.items() if item is not None})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        place = ".".join(map(str, first["loc"])) or "the body"
        raise ApiError(400, f"{place[:100]}: {first['msg'].removeprefix('Value error, ')}", param=field) from None
    known = {name for key, field in model.model_fields.items() for name in (key, field.alias)}
    for name in {name[:50] for name, item in value.items() if item is not None and name not in known} - _ignored:
        if len(_ignored) < MAX_IGNORED:
            _ignored.add(name)
            LOG.warning("requests have the field %s, which is ignored", shown(name))
    return request


def _refuse(constant: str):
    raise ValueError(f"{constant} is not a number of JSON")
