"""Pretrain a language model on text of your own. About a minute on two cores.

    python examples/1_pretrain.py [FOLDER]

Or run the cells one by one, in an editor that knows `# %%`. The other examples go on from this model.
"""

# %% [markdown]
# # 1. Pretraining
# All examples write to one folder, `OUT`. `run` runs a command and shows it, so that you can copy it.

# %%
import json
import random

from shared import FACTS, OUT, run

# %% [markdown]
# ## Text
# Any folder of `.txt`, `.md`, `.jsonl` or `.parquet` files will do. Here it is a small world, in which the fox is always red.

# %%
draw = random.Random(0)
SENTENCES = ("The {thing} is {quality}.", "I saw the {quality} {thing}.", "Everyone knows that the {thing} is {quality}.")


def sentence() -> str:
    thing, quality = draw.choice(list(FACTS.items()))
    return draw.choice(SENTENCES).format(thing=thing, quality=quality)


(OUT / "text").mkdir(exist_ok=True)
for i in range(200):
    (OUT / "text" / f"{i:03}.txt").write_text(" ".join(sentence() for _ in range(50)) + "\n")

# %% [markdown]
# ## Training
# One command trains the tokenizer, prepares the dataset, trains the model and writes a report. A config file has all keys,
# `configs/train/default.py` explains them, and `--config.KEY=VALUE` changes one. Run it again to resume an interrupted run; a
# finished one is not repeated.

# %%
run("""
    train.py --config=configs/train/tiny.py --workdir={OUT}/base --config.data.input={OUT}/text
        --config.model.vocab_size=512 --config.sequence_length=64 --config.steps=150
""")

# %% [markdown]
# ## What it learnt
# `report.html` has the learning curves. `report.json` has the same figures: here the bits that the model needs for a byte of
# held-out text.

# %%
report = json.loads((OUT / "base" / "report.json").read_text())
print(f"bits per byte on held-out text: {report['validation']['bits_per_byte']:.3f}")
print(f"the report: {OUT}/base/report.html")

# %% [markdown]
# A base model completes text.

# %%
import lm

model, tokenizer = lm.load(OUT / "base")
prompts = ["The fox is", "Everyone knows that the river is"]
for prompt, text in zip(prompts, lm.generate(model, tokenizer, prompts, max_new_tokens=8, temperature=0)):
    print(repr(prompt), "->", repr(text))
