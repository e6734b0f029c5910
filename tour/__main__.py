"""`python -m tour`: the whole life of a small model on two cores, in some minutes. Its text is this Python installation.

It reads docstrings and source, learns to predict them, learns to say what a function does, prefers right answers to wrong
ones, learns to be brief, is examined, loses most of its bits, and serves. Run again, it resumes an interrupted pretraining.
"""

import json
import sysconfig
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np

from tour.dpo import dpo_loss, pairs_of
from tour.evaluate import bits_per_byte, choice_accuracy
from tour.generate import Sampling
from tour.grpo import grpo_loss, rollouts
from tour.hf import write
from tour.mesh import make_mesh
from tour.model import Config, declare, init
from tour.optimizers import Recipe
from tour.pretrain import first_state, make_step, next_token_loss, on_mesh, restored, save, train
from tour.quantize import dequantize_model, megabytes, quantize_model
from tour.serve import Engine, serve
from tour.sft import batch_of, prompt_ids
from tour.text import END, batch_of_rows, batches, definitions, is_good, pack, train_tokenizer, without_near_duplicates

FOLDER, T = Path("runs/tour"), 128
begin = time.monotonic()


def say(text: str) -> None:
    """Print a heading with the seconds since the start."""
    print(f"\n[{time.monotonic() - begin:.0f} s] {text}", flush=True)


jax.set_mesh(make_mesh())
say("Text: docstrings and source files of the standard library")
named = [(name, " ".join(text.split("\n\n")[0].split())) for name, text in definitions()]
sources = [path.read_text(errors="replace") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))]
documents = without_near_duplicates([text for _, text in definitions() if is_good(text)] + sources)
held_out, documents = documents[::50], [text for i, text in enumerate(documents) if i % 50]
tokenizer = train_tokenizer(documents, vocab_size=2048)
rows = pack(tokenizer.encode(documents), T)
print(f"{len(documents)} documents, {sum(map(len, documents)) / 1e6:.1f} million characters, {len(rows)} rows")

config = Config(vocab_size=2048, num_layers=4, embed_dim=192, num_heads=6, num_kv_heads=3, head_dim=32, mlp_dim=512)
weights, recipe = declare(config), Recipe(steps=250, learning_rate=0.006)
say(f"Pretraining: {recipe.steps} steps of {16 * T} tokens")
state = restored(FOLDER / "pretrained", first_state(weights, init(weights, seed=0), recipe))
step = make_step(next_token_loss(config, recipe.z_loss), weights, recipe)
for stop in (100, 200, 250):
    if int(state.step) < stop:
        state = train(step, state, batches(rows, T, size=16), stop)
        save(FOLDER / "pretrained", state)
held_rows, held_bytes = pack(tokenizer.encode(held_out), T), sum(len(text.encode()) for text in held_out)
tests = [batch_of_rows(held_rows[i : i + 16], T) for i in range(0, len(held_rows), 16)]
print(f"held-out text: {bits_per_byte(state.params, config, tests, held_bytes):.3f} bits per byte")

say("Fine-tuning: what does a function do?")
end, random = tokenizer.piece_to_id(END), np.random.default_rng(0)


def ask(name: str) -> list[int]:
    """Return the tokens of a question."""
    return prompt_ids(tokenizer, [{"role": "user", "content": f"What does {name} do?"}])


known = [(ask(name), [*tokenizer.encode(text), end]) for name, text in named if 20 < len(text) < 150]
known = [(prompt, answer) for prompt, answer in known if len(prompt) + len(answer) <= 96]
random.shuffle(known)
learnt, asked = known[100:], known[:100]
others = [known[i][1] for i in random.integers(100, len(known), 300)]
items = [(prompt, [answer, *others[3 * i : 3 * i + 3]]) for i, (prompt, answer) in enumerate(asked)]


def examine(params: dict) -> str:
    """Return the share of held-out functions whose own description is likelier than three others."""
    mean, half = choice_accuracy(params, config, items, [0] * len(items), length=96)
    return f"score: {mean:.2f} ± {half:.2f} of {len(items)} questions with four answers (chance: 0.25)"


print("before:", examine(state.params))
recipe = Recipe(steps=150, learning_rate=0.002)
step, state = make_step(next_token_loss(config), weights, recipe), first_state(weights, state.params, recipe)
state = train(step, state, lambda n: batch_of(learnt, 32, 96, n), recipe.steps)
print("after:", examine(state.params))

say("DPO: right descriptions before those of other functions")
recipe, frozen = Recipe(steps=20, learning_rate=0.0005, warmup=5), state.params
step, state = make_step(dpo_loss(config), weights, recipe), first_state(weights, state.params, recipe)
pairs = [(prompt, answer, learnt[i - 1][1]) for i, (prompt, answer) in enumerate(learnt)]
state = train(step, state, lambda n: pairs_of(pairs[16 * n : 16 * n + 16], 160), recipe.steps, frozen)
print("after:", examine(state.params))

say("GRPO: brief answers")
recipe, how = Recipe(steps=8, learning_rate=0.0005, warmup=1), Sampling(32, temperature=1.0, stop_ids=(end,))
step, state = make_step(grpo_loss(config), weights, recipe), first_state(weights, state.params, recipe)
for n in range(recipe.steps):
    prompts = [prompt for prompt, _ in learnt[8 * n : 8 * n + 8]]
    batch, mean = rollouts(state.params, config, prompts, 8, lambda i, answer: 1 / len(answer), how, seed=n)
    state, _ = step(state, on_mesh(batch))
    print(f"step {n + 1}: mean reward {mean:.3f}")
print("after:", examine(state.params))

say("Integers")
print(
    f"float32: {megabytes(state.params):.1f} MB, {bits_per_byte(state.params, config, tests, held_bytes):.3f} bits per byte"
)
for bits, group in ((8, 0), (4, 32)):
    small = quantize_model(state.params, config, bits, group)
    score = bits_per_byte(dequantize_model(small, config), config, tests, held_bytes)
    print(f"int{bits}: {megabytes(small, bits):.1f} MB, {score:.3f} bits per byte")

say("Serving")
write(FOLDER / "hf", state.params, config)
server = serve(Engine(state.params, config, (end,)), tokenizer, port=0)
url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
body = {"messages": [{"role": "user", "content": f"What does {named[100][0]} do?"}], "max_tokens": 40, "temperature": 0}
with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as reply:
    print(f"POST {url} {json.dumps(body)}\n{json.load(reply)['choices'][0]['message']}")
say("The end.")
