"""The whole life of a small model on two cores, in some minutes. Its text is this Python installation.

It learns to predict docstrings and source, to say what a function does, to prefer right answers, and to be brief; it is
examined, loses most of its bits, and serves. Run again, it resumes an interrupted pretraining of the same text.
"""

import json
import sysconfig
import time
import urllib.request
from functools import partial
from pathlib import Path

import jax
import numpy as np

from tour import dpo, evaluate, grpo, hf, pretrain, quantize, serve, sft, text
from tour.mesh import make_mesh
from tour.model import Batch, Config, Params, declare, init
from tour.optimizers import Recipe

FOLDER, T, begin = Path("runs/tour"), 128, time.monotonic()


def say(heading: str) -> None:
    """Print a heading with the seconds since the start."""
    print(f"\n[{time.monotonic() - begin:.0f} s] {heading}", flush=True)


say("Text: docstrings and source files of the standard library")
jax.set_mesh(make_mesh())
named = list(text.definitions())
sources = [path.read_text(errors="replace") for path in Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")]
good = [docstring for _, docstring in named if text.is_good(docstring)]
documents = text.without_near_duplicates(good + sorted(sources))
held_out, documents = documents[::50], [document for i, document in enumerate(documents) if i % 50]
tokenizer = text.train_tokenizer(documents, vocab_size=2048)
rows, held_rows = text.pack(tokenizer.encode(documents), T), text.pack(tokenizer.encode(held_out), T)
print(f"{len(documents)} documents, {sum(map(len, documents)) / 1e6:.1f} million characters, {len(rows)} rows")

say("Pretraining")
config = Config(vocab_size=2048, num_layers=4, embed_dim=192, num_heads=6, num_kv_heads=3, head_dim=32, mlp_dim=512)
weights, recipe = declare(config), Recipe(steps=250, learning_rate=0.006)
params, loss = init(weights, seed=0), partial(pretrain.next_token_loss, config, z_loss=1e-4)
folder = FOLDER / pretrain.fingerprint(rows, config, recipe)
params = pretrain.fit(
    loss, weights, params, recipe, lambda n, _: text.batch_of_rows(text.shuffled(rows, n, 16), T), folder=folder
)
base, held_bytes = params, sum(len(document.encode()) for document in held_out)
tests = [text.batch_of_rows(held_rows[i : i + 16], T) for i in range(0, len(held_rows), 16)]
print(f"held-out text: {evaluate.bits_per_byte(params, config, tests, held_bytes):.3f} bits per byte")

say("Fine-tuning: what does a function do?")
end, random = tokenizer.piece_to_id(text.END), np.random.default_rng(0)
known = []
for name, docstring in named:
    prompt = sft.prompt_ids(tokenizer, [{"role": "user", "content": f"What does {name} do?"}])
    short = " ".join(docstring.split("\n\n")[0].split())
    known.append((prompt, [*tokenizer.encode(f"In {name.split('.')[0]}: {short}"), end]))
known = [known[i] for i in random.permutation(len(known)) if len(known[i][0]) + len(known[i][1]) <= 64]
asked, learnt = known[:100], known[100:]
wrong = [known[i][1] for i in random.integers(100, len(known), 300)]
items = [(prompt, [answer, *wrong[3 * i : 3 * i + 3]]) for i, (prompt, answer) in enumerate(asked)]


def examine(params: Params) -> None:
    """Print for how many held-out functions the right description is likelier than three others."""
    mean, half = evaluate.choice_accuracy(params, config, items, [0] * len(items), length=64)
    print(f"score: {mean:.2f} ± {half:.2f} of {len(items)} questions with four answers; chance is 0.25")


examine(params)
recipe = Recipe(steps=300, learning_rate=0.003)
params = pretrain.fit(loss, weights, params, recipe, lambda n, _: sft.rows(text.shuffled(learnt, n, 16), 64))
examine(params)

say("DPO: right descriptions before those of other functions")
pairs = [(prompt, answer, learnt[i - 1][1]) for i, (prompt, answer) in enumerate(learnt)]
recipe, loss = Recipe(steps=20, learning_rate=0.0005, warmup=5), partial(dpo.dpo_loss, config)
params = pretrain.fit(loss, weights, params, recipe, lambda n, _: dpo.pairs_of(text.shuffled(pairs, n, 8), 96), params)
examine(params)

say("GRPO: brief answers")
recipe, prompts = Recipe(steps=8, learning_rate=0.0005, warmup=1), [prompt for prompt, _ in learnt]


def rollouts(n: int, params: Params) -> Batch:
    """Draw eight answers to each of eight prompts; the reward is 1 / length."""
    some = text.shuffled(prompts, n, 8)
    return grpo.rollouts(params, config, some, 8, lambda i, answer: 1 / len(answer), 32, (end,), n)


params = pretrain.fit(partial(grpo.grpo_loss, config), weights, params, recipe, rollouts)
examine(params)

say("Integers in place of floats, in the pretrained model")
for bits, group in ((32, 0), (8, 0), (4, 32)):
    small = quantize.quantize_model(base, config, bits, group) if bits < 32 else base
    score = evaluate.bits_per_byte(quantize.dequantize_model(small, config), config, tests, held_bytes)
    print(f"{bits} bits: {quantize.megabytes(small, bits):.1f} MB, {score:.3f} bits per byte")

say("Serving")
hf.write(FOLDER / "hf", params, config)
server = serve.serve(serve.Engine(params, config, (end,)), tokenizer, port=0)
body = {"messages": [{"role": "user", "content": f"What does {named[100][0]} do?"}], "max_tokens": 40, "temperature": 0}
url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as reply:
    print(f"POST {url} {json.dumps(body)}\n{json.load(reply)['choices'][0]['message']}")
say("The end")
