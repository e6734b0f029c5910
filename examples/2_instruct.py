"""Teach a base model to answer questions: supervised fine-tuning on conversations. About a minute on two cores.

    python examples/2_instruct.py [FOLDER]

It needs the model of 1_pretrain.py, and trains it first if FOLDER has none.
"""

# %% [markdown]
# # 2. Instructions

# %%
import json
import random

from shared import FACTS, OUT, run

if not (OUT / "base" / "report.html").exists():
    run("examples/1_pretrain.py {OUT}")

# %% [markdown]
# ## Conversations
# One JSON object a line, in the format of chat APIs. ShareGPT's, Alpaca's and others are read too (docs/align.md). The answers
# are deliberately mixed in style: the next examples will make the model prefer one.

# %%
draw = random.Random(0)
QUESTIONS = ("What is the {thing} like?", "Tell me about the {thing}.", "How is the {thing}?", "Do you know the {thing}?")
OPENINGS = ("", "Gladly, ", "Look, ", "Well, you know, ")


def conversation() -> dict:
    thing, quality = draw.choice(list(FACTS.items()))
    question = draw.choice(QUESTIONS).format(thing=thing)
    answer = f"{draw.choice(OPENINGS)}the {thing} is {quality}."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


with open(OUT / "chats.jsonl", "w") as file:
    file.writelines(json.dumps(conversation()) + "\n" for _ in range(1000))

# %% [markdown]
# ## Training
# `init_from` gives the model and the tokenizer. Only the answers are trained, not the questions. A tenth of the questions is
# held out: the model has only seen other questions about the same things.

# %%
run("""
    align.py --config=configs/align/sft.py --workdir={OUT}/sft --config.init_from={OUT}/base
        --config.data.input={OUT}/chats.jsonl --config.data.valid_fraction=0.1 --config.sequence_length=64
        --config.batch_size=16 --config.steps=100 --config.optimizer.learning_rate=2e-3
""")

# %% [markdown]
# `metrics.jsonl` has every figure of the run. The accuracy is that of the next token in the held-out answers; the style of an
# answer cannot be foreseen, so it stays below 1.

# %%
lines = [json.loads(line) for line in open(OUT / "sft" / "metrics.jsonl")]
valid = [line for line in lines if "valid_loss" in line]
for line in (valid[0], valid[-1]):
    print(f"step {line['step']}: accuracy on held-out answers {line['valid_mean_token_accuracy']:.2f}")

# %% [markdown]
# ## Asking it
# `lm.generate` renders messages with the chat template, and stops where the answer ends. `lm.chat` answers one conversation.
# On the terminal, `python -m lm.chat --checkpoint=FOLDER/sft` keeps a conversation going.

# %%
import lm

model, tokenizer = lm.load(OUT / "sft")
question = [{"role": "user", "content": "Tell me about the fox."}]
for answer in lm.generate(model, tokenizer, [question] * 4, max_new_tokens=24, temperature=1.0, seed=1):
    print("answer:", answer)
print(lm.chat(model, tokenizer, question, max_new_tokens=24, temperature=0))
