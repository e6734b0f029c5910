"""Sample rollouts: the policy answers prompts with its current parameters, and may call tools or act in an environment.

A rollout is a conversation as token ids, with a mask of the sampled tokens and their log-probabilities. Training uses these
ids; text is never encoded again.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data.chat.examples import read_template
from data.chat.harmony import spelled
from data.chat.media.encoding import Towers, arrays_of
from data.chat.template import opens_thought
from data.chat.thoughts import divided, thought_length
from data.text.tokenizer import Tokenizer
from lm.align.rl.tools import Surroundings, Tool, answer_ids, check_turns, run_calls, user_ids
from lm.errors import UserError
from lm.infer.calls import Answer, parse_text, parse_turn
from lm.infer.engine.local import Layout, LocalEngine
from lm.infer.engine.request import Sampling, Tile, tiles_of
from lm.infer.engine.thought import budget_of, forced_places
from lm.infer.environments import Episodes, Make, Observed
from lm.infer.prompts import stops_of
from lm.model.media import Media
from lm.model.transformer import Transformer
from lm.parallel.mesh import moved
from lm.train.fit import memory_of_device

SHARE = 1 / 6  # of the memory, for a packed copy of the weights beside the training state


@dataclasses.dataclass
class Rollout:
    """A prompt and its continuation, turn by turn.

    tokens: ids of both. mask: True for tokens that the policy sampled. logps: the sampler's log-probabilities of these, nats; 0
    elsewhere. messages: the whole conversation. completion: text of the policy's last turn behind its thought, "" if that has
    no end. ended: False if a length limit cut the last turn. thought_tokens: of all turns' thoughts. thought_cut: whether the
    budget closed one. tool_calls, tool_errors: numbers of calls and of failed calls. episode_return: sum of the rewards of an
    environment; None without one.
    """

    tokens: list[int]
    mask: list[bool]
    logps: list[float]
    messages: list[dict]
    completion: str = ""
    ended: bool = False
    thought_tokens: int = 0
    thought_cut: bool = False
    tool_calls: int = 0
    tool_errors: int = 0
    episode_return: float | None = None

    @classmethod
    def begun(cls, task: dict) -> "Rollout":
        """Return the rollout of a task before the first turn."""
        rollout = cls([], [], [], list(task["prompt"]))
        rollout._add(task["prompt_ids"])
        return rollout

    @property
    def length(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(self.mask)

    def _add(self, tokens: Sequence[int], logps: Sequence[float] | None = None, forced: Sequence[bool] | None = None) -> None:
        """Append tokens; logps: of those that the policy sampled, except where a budget `forced` them."""
        drawn = [logps is not None and not (forced and forced[n]) for n in range(len(tokens))]
        self.tokens += tokens
        self.mask += drawn
        self.logps += [logps[n] if mine else 0.0 for n, mine in enumerate(drawn)]

    def add_turn(self, tokenizer, turn: Sequence, settings: "RolloutSettings"):
        """Append a turn of the policy: (tokens, logps, whether it ended).

        Returns its tool calls, each a message's `function` or an error text.
        """
        tokens, logps, ended = turn
        begun, limit, forced = opens_thought(tokenizer, self.tokens), settings.thought_budget, None
        if limit is not None:
            forced = forced_places(budget_of(tokenizer, self.tokens, limit), tokens)
            self.thought_cut |= any(forced)
        self._add(tokens, logps, forced)
        self.ended = ended
        said = tokens[:-1] if ended else tokens
        length = thought_length(tokenizer, said, begun)
        self.thought_tokens += length
        thought, self.completion = divided(spelled(tokenizer, said, begun), begun)
        message = {"role": "assistant", "content": self.completion} | ({"reasoning_content": thought} if thought else {})
        if not settings.tools and settings.environment is None:
            self.messages.append(message)
            return []
        parsed = parse_text(self.completion) if tokenizer.is_harmony else parse_turn(tokenizer, said[length:])
        self.completion = message["content"] = parsed.content.lstrip() if length else parsed.content
        if parsed.tool_calls:
            message["tool_calls"] = parsed.tool_calls
        self.messages.append(message)
        calls = [*(call["function"] for call in parsed.tool_calls), *parsed.errors]
        self.tool_calls += len(calls)
        return calls if ended else []

    def add_answers(self, tokenizer, answers: Sequence[Answer], template: str | None, *, of_tools: bool) -> None:
        """Append the answers of tools, or else the one of the user, and the opening of the policy's next turn."""
        self.tool_errors += sum(answer.failed for answer in answers if of_tools)
        texts = [answer.text for answer in answers]
        called = [call["function"]["name"] for call in self.messages[-1].get("tool_calls", [])]
        ids = answer_ids(tokenizer, texts, template, called) if of_tools else user_ids(tokenizer, texts[0], template)
        self._add(ids)
        self.messages += [{"role": "tool" if of_tools else "user", "content": text} for text in texts]


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How rollouts are sampled.

    max_new_tokens: limit per turn. thought_budget: of these, most of a thought `<think>…</think>`, which is then closed; None:
    no limit. most_tokens: limit per rollout with its prompt; 0: no limit.
    tools: tools that a turn may call. Their answers follow each turn except the last of max_turns.
    environment: makes the environment of a rollout, which answers each turn in place of tools; None: there is none.
    width: tokens of the longest prompt. template: the chat template; None: the tokenizer's own.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    most_tokens: int = 0
    tools: Sequence[Tool] = ()
    environment: Make | None = None
    max_turns: int = 1
    width: int = 0
    template: str | None = None
    thought_budget: int | None = None


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A function of (parameters, tasks) that samples `each` rollouts of each task.

    temperature: overrides that of settings. engine, towers: as in `roll_out`. mesh: to which the parameters are moved; None:
    they are used where they are. wait: called first. close: stop the engine; another call starts it again.
    """

    graph: nnx.GraphDef
    tokenizer: Tokenizer
    settings: RolloutSettings
    engine: LocalEngine
    towers: Towers | None = None
    mesh: Mesh | None = None
    wait: Callable[[], None] | None = None

    def __call__(
        self, params, tasks: Sequence[dict], *, seed: int, each: int = 1, temperature: float | None = None
    ) -> list[Rollout]:
        settings = self.settings if temperature is None else dataclasses.replace(self.settings, temperature=temperature)
        options = {"seed": seed, "each": each, "towers": self.towers}
        if self.wait is not None:
            self.wait()
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            params = params if self.mesh is None else moved(params, self.mesh)
            return roll_out(nnx.merge(self.graph, params), self.tokenizer, tasks, settings, self.engine, **options)

    def close(self) -> None:
        self.engine.close()


def sampler_of(
    config,
    graph: nnx.GraphDef,
    tokenizer: Tokenizer,
    tasks: Sequence[dict],
    surroundings: Surroundings = Surroundings(),  # noqa: B008 (it is immutable)
    *,
    room: float | None = None,
    towers: Towers | None = None,
    mesh: Mesh | None = None,
) -> Sampler:
    """Return the sampler of a run: config.rollout, and rows of config.sequence_length + 1 tokens.

    room: bytes for a packed copy of the weights beside the training state; None: a share of the memory, so that a resumed run
    on the same machine decides alike. towers: what a model with encoders sees and hears. mesh: as in `Sampler`.
    Raises as `check_room` and `check_turns`.
    """
    o = config.rollout
    settings = RolloutSettings(
        max_new_tokens=o.max_new_tokens,
        temperature=o.temperature,
        top_p=o.top_p,
        top_k=o.top_k,
        most_tokens=config.sequence_length + 1,
        tools=surroundings.tools,
        environment=surroundings.environment,
        max_turns=o.max_turns,
        width=check_room(config, tasks),
        template=read_template(config.get("chat_template")),
        thought_budget=o.get("thought_budget"),
    )
    if settings.max_turns > 1:
        check_turns(tokenizer, surroundings, settings.template)
    rows = config.best_of.rows if config.get("method") == "best_of" else config.batch_size
    room = SHARE * memory_of_device() if room is None else room
    return Sampler(graph, tokenizer, settings, LocalEngine(tokenizer, room, rows, settings.most_tokens), towers, mesh)


def seed_of(seed: int, number: int) -> int:
    """Return the seed that samples step or chunk `number` of a run with `seed`."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def check_room(config, tasks: Sequence[dict]) -> int:
    """Return the length of the longest prompt in tokens. Raises UserError if it and one turn do not fit into a row."""
    width = max(len(task["prompt_ids"]) for task in tasks)
    most = width + config.rollout.max_new_tokens
    if most > config.sequence_length + 1:
        raise UserError(
            f"sequence_length={config.sequence_length} is too short for prompts of {width} tokens and "
            f"rollout.max_new_tokens={config.rollout.max_new_tokens}: make it {most - 1} at least"
        )
    return width


def roll_out(
    model: Transformer,
    tokenizer,
    tasks: Sequence[dict],
    settings: RolloutSettings,
    engine: LocalEngine,
    *,
    seed: int = 0,
    each: int = 1,
    towers: Towers | None = None,
) -> list[Rollout]:
    """Sample `each` rollouts of each task; rollouts of one task are adjacent in the result.

    tasks: {"prompt": messages, "prompt_ids": ids up to the start of the policy's turn, …}; with `towers`, what the model sees
    and hears, also "prompt_media" (data.chat.examples.prepare_tasks). The tokens of a rollout depend on (seed, its index) and
    its task alone.
    Raises: UserError if an environment fails; see lm/infer/environments.py.
    """
    o, tools = settings, settings.tools
    stops = stops_of(tokenizer, o.template)
    rows = [Rollout.begun(task) for task in tasks for _ in range(each)]
    episodes = Episodes(o.environment, [task for task in tasks for _ in range(each)]) if o.environment else None
    going, shown = list(range(len(rows))), [media_of(task, towers) for task in tasks]
    for turn in range(o.max_turns):
        prompts = [rows[i].tokens for i in going]
        alike = each if turn == 0 else 1
        sampling = Sampling(o.max_new_tokens, o.temperature, o.top_p, o.top_k, stops, seed=seed + 7919 * turn)
        media = [shown[i // each] for i in going[::alike]]
        drawn = engine.draw(model, prompts[::alike], sampling, Layout(alike, going, media, o.thought_budget))
        calls = []
        for i, *said in zip(going, drawn.tokens, drawn.logps, drawn.ended):
            calls.append(rows[i].add_turn(tokenizer, said, o))
        if episodes is not None:
            acted = {i: said or rows[i].completion for i, said in zip(going, calls) if rows[i].ended}
            answered = episodes.step(acted)
        elif tools:
            answered = {i: Observed(answers, False, 0.0) for i, answers in zip(going, run_calls(tools, calls)) if answers}
        else:
            break
        last = turn == o.max_turns - 1
        still = []
        for i, said in zip(going, calls):
            if i not in answered or not rows[i].ended:
                continue
            found = answered[i]
            if episodes is not None:
                rows[i].episode_return = found.total
            if last or found.over:
                continue
            rows[i].add_answers(tokenizer, found.answers, o.template, of_tools=bool(said))
            if not o.most_tokens or len(rows[i].tokens) + o.max_new_tokens <= o.most_tokens:
                still.append(i)
            else:
                rows[i].ended = False
        going = still
        if not going:
            break
    return rows


def media_of(task: dict, towers: Towers | None) -> tuple[tuple[Tile, ...], int] | None:
    """Return the tiles of a task's prompt and its length; None for text."""
    kept = task.get("prompt_media", ())
    if towers is None or not kept:
        return None
    arrays = arrays_of(kept, towers, "a task's medium")
    return tiles_of(Media(*(array[None] if len(array) else None for array in arrays))), len(task["prompt_ids"])


def arrays(rollouts: Sequence[Rollout], sequence_length: int, pad_id: int) -> dict[str, np.ndarray]:
    """Return rows [N, T] for the trainer, padded on the right; rollouts longer than T + 1 tokens are cut.

    Keys: tokens, targets, segment_ids, positions (int32), weights (float32, 1 where the policy drew the target) and
    sampler_logps (float32).
    """
    N, T = len(rollouts), sequence_length
    tokens = np.full((N, T + 1), pad_id, np.int32)
    drawn, logps = np.zeros((N, T + 1), np.float32), np.zeros((N, T + 1), np.float32)
    segments = np.zeros((N, T + 1), np.int32)
    for i, rollout in enumerate(rollouts):
        n = min(len(rollout.tokens), T + 1)
        tokens[i, :n], drawn[i, :n] = rollout.tokens[:n], rollout.mask[:n]
        logps[i, :n], segments[i, :n] = rollout.logps[:n], 1
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (N, T)) * segments[:, :-1]
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments[:, :-1],
        "positions": positions,
        "weights": drawn[:, 1:],
        "sampler_logps": logps[:, 1:],
    }
