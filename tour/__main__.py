"""The whole life of a small model on two cores, in some minutes. Its text is this Python installation.

It learns to predict docstrings and source, to say what a function does, to prefer right answers, and to be brief; it is
examined, loses most of its bits, and serves. Run again, it resumes an interrupted pretraining.
"""

import json
import sysconfig
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np

from tour import dpo, evaluate, grpo, hf, pretrain, quantize, serve, sft, text
from tour.generate import Sampling
from tour.mesh import make_mesh
from tour.model import Config, declare, init
from tour.optimizers import Recipe

FOLDER, T = Path("runs/tour"), 128
begin = time.monotonic()


def say(heading: str) -> None:
    """Print a heading with the seconds since the start."""
    print(f"\n[{time.monotonic() - begin:.0f} s] {heading}", flush=True)


jax.set_mesh(make_mesh())
say("Text: docstrings and source files of the standard library")
named = [(name, " ".join(docstring.split("\n\n")[0].split())) for name, docstring in text.definitions()]
sources = [path.read_text(errors="replace") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))]
documents = text.without_near_duplicates(
    [docstring for _, docstring in text.definitions() if text.is_good(docstring)] + sources
)
held_out, documents = documents[::50], [document for i, document in enumerate(documents) if i % 50]
tokenizer = text.train_tokenizer(documents, vocab_size=2048)
rows = text.pack(tokenizer.encode(documents), T)
print(f"{len(documents)} documents, {sum(map(len, documents)) / 1e6:.1f} million characters, {len(rows)} rows")

config = Config(vocab_size=2048, num_layers=4, embed_dim=192, num_heads=6, num_kv_heads=3, head_dim=32, mlp_dim=512)
weights, recipe = declare(config), Recipe(steps=250, learning_rate=0.006)
say(f"Pretraining: {recipe.steps} steps of {16 * T} tokens")
state = pretrain.restored(FOLDER / "pretrained", pretrain.first_state(weights, init(weights, seed=0), recipe))
step = pretrain.make_step(pretrain.next_token_loss(config, recipe.z_loss), weights, recipe)
for stop in (100, 200, 250):
    if int(state.step) < stop:
        state = pretrain.train(step, state, text.batches(rows, T, size=16), stop)
        pretrain.save(FOLDER / "pretrained", state)
held_rows, held_bytes = text.pack(tokenizer.encode(held_out), T), sum(len(document.encode()) for document in held_out)
tests = [text.batch_of_rows(held_rows[i : i + 16], T) for i in range(0, len(held_rows), 16)]
params = state.params
print(f"held-out text: {evaluate.bits_per_byte(params, config, tests, held_bytes):.3f} bits per byte")

say("Fine-tuning: what does a function do?")
end, random = tokenizer.piece_to_id(text.END), np.random.default_rng(0)


def ask(name: str) -> list[int]:
    """Return the tokens of a question."""
    return sft.prompt_ids(tokenizer, [{"role": "user", "content": f"What does {name} do?"}])


known = [(ask(name), [*tokenizer.encode(f"In {name.split('.')[0]}: {short}"), end]) for name, short in named]
known = [known[i] for i in random.permutation(len(known)) if len(known[i][0]) + len(known[i][1]) <= 64]
asked, learnt = known[:100], known[100:]
wrong = [known[i][1] for i in random.integers(100, len(known), 300)]
items = [(prompt, [answer, *wrong[3 * i : 3 * i + 3]]) for i, (prompt, answer) in enumerate(asked)]


def examine(params: dict) -> str:
    """Return the share of held-out functions whose own description is likelier than three others."""
    mean, half = evaluate.choice_accuracy(params, config, items, [0] * len(items), length=64)
    return f"score: {mean:.2f} ± {half:.2f} of {len(items)} questions with four answers (chance: 0.25)"


print("before:", examine(params))
recipe = Recipe(steps=300, learning_rate=0.003)
params = pretrain.fit(
    pretrain.next_token_loss(config), weights, params, recipe, lambda n: sft.batch_of(learnt, 16, 64, n)
)
print("after:", examine(params))

say("DPO: right descriptions before those of other functions")
pairs = [(prompt, answer, learnt[i - 1][1]) for i, (prompt, answer) in enumerate(learnt)]
recipe = Recipe(steps=20, learning_rate=0.0005, warmup=5)
params = pretrain.fit(
    dpo.dpo_loss(config), weights, params, recipe, lambda n: dpo.pairs_of(pairs[8 * n : 8 * n + 8], 96), params
)
print("after:", examine(params))

say("GRPO: brief answers")
recipe, how = Recipe(steps=8, learning_rate=0.0005, warmup=1), Sampling(32, temperature=1.0, stop_ids=(end,))
step, state = pretrain.make_step(grpo.grpo_loss(config), weights, recipe), pretrain.first_state(weights, params, recipe)
for n in range(recipe.steps):
    prompts = [prompt for prompt, _ in learnt[8 * n : 8 * n + 8]]
    batch, mean = grpo.rollouts(state.params, config, prompts, 8, lambda i, answer: 1 / len(answer), how, seed=n)
    state, _ = step(state, pretrain.on_mesh(batch))
    print(f"step {n + 1}: mean reward {mean:.3f}")
params = state.params
print("after:", examine(params))

say("Integers")
print(
    f"float32: {quantize.megabytes(params):.1f} MB, {evaluate.bits_per_byte(params, config, tests, held_bytes):.3f} bits per byte"
)
for bits, group in ((8, 0), (4, 32)):
    small = quantize.quantize_model(params, config, bits, group)
    score = evaluate.bits_per_byte(quantize.dequantize_model(small, config), config, tests, held_bytes)
    print(f"int{bits}: {quantize.megabytes(small, bits):.1f} MB, {score:.3f} bits per byte")

say("Serving")
hf.write(FOLDER / "hf", params, config)
server = serve.serve(serve.Engine(params, config, (end,)), tokenizer, port=0)
url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
body = {"messages": [{"role": "user", "content": f"What does {named[100][0]} do?"}], "max_tokens": 40, "temperature": 0}
with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as reply:
    print(f"POST {url} {json.dumps(body)}\n{json.load(reply)['choices'][0]['message']}")
say("The end.")
