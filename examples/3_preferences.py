"""Make a model prefer one kind of answer: direct preference optimisation (DPO) on pairs. About a minute on two cores.

    python examples/3_preferences.py [FOLDER]

It needs the model of 2_instruct.py, and trains it first if FOLDER has none.
"""

# %% [markdown]
# # 3. Preferences

# %%
import json
import random

from shared import FACTS, OUT, run

if not (OUT / "sft" / "report.html").exists():
    run("examples/2_instruct.py {OUT}")

# %% [markdown]
# ## Pairs
# Each line has a prompt and two answers, of which the first one is better. Here polite answers are.

# %%
draw = random.Random(1)
QUESTIONS = ("What is the {thing} like?", "Tell me about the {thing}.", "How is the {thing}?", "Do you know the {thing}?")


def pair() -> dict:
    thing, quality = draw.choice(list(FACTS.items()))
    other = draw.choice(("", "Look, ", "Well, you know, "))
    return {
        "prompt": draw.choice(QUESTIONS).format(thing=thing),
        "chosen": f"Gladly, the {thing} is {quality}.",
        "rejected": f"{other}the {thing} is {quality}.",
    }


with open(OUT / "pairs.jsonl", "w") as file:
    file.writelines(json.dumps(pair()) + "\n" for _ in range(400))

# %% [markdown]
# ## Training
# DPO compares the policy with the model that it started from. It may lower the probability of both answers, if that of the
# rejected one falls faster, and then the policy answers something else. Two keys prevent it: a large `preference.beta` keeps
# the policy close to the reference, and `preference.nll_weight` also trains the chosen answer, as supervised fine-tuning does.
# `preference.loss=ipo` and others select variants.

# %%
run("""
    align.py --config=configs/align/dpo.py --workdir={OUT}/dpo --config.init_from={OUT}/sft
        --config.data.input={OUT}/pairs.jsonl --config.data.valid_fraction=0.2 --config.sequence_length=64
        --config.batch_size=16 --config.steps=40 --config.optimizer.learning_rate=3e-4
        --config.preference.beta=1 --config.preference.nll_weight=1
""")

# %% [markdown]
# The implicit reward is β · (log-probability under the policy − log-probability under the reference). At the start it is 0 for
# every answer. Its margin between the two held-out answers of a pair should grow.

# %%
lines = [json.loads(line) for line in open(OUT / "dpo" / "metrics.jsonl")]
valid = [line for line in lines if "valid_loss" in line]
for line in (valid[0], valid[-1]):
    print(f"step {line['step']}: margin {line['valid_rewards/margins']:.2f}, accuracy {line['valid_rewards/accuracies']:.2f}")

# %%
import lm

question = [{"role": "user", "content": "How is the lamp?"}]
for name in ("sft", "dpo"):
    model, tokenizer = lm.load(OUT / name)
    answers = lm.generate(model, tokenizer, [question] * 32, max_new_tokens=24, temperature=1.0, seed=0)
    polite = sum(answer.startswith("Gladly") for answer in answers)
    print(f"{name}: {polite} of {len(answers)} answers are polite, such as {answers[0]!r}")
