"""Improve a model by a reward of your own: reinforcement learning with GRPO. About a minute on two cores.

    python examples/4_reinforce.py [FOLDER]

It needs the model of 2_instruct.py, and trains it first if FOLDER has none.
"""

# %% [markdown]
# # 4. Reinforcement learning

# %%
import json

from shared import FACTS, OUT, run

if not (OUT / "sft" / "report.html").exists():
    run("examples/2_instruct.py {OUT}")

# %% [markdown]
# ## Tasks and a reward
# A task is a prompt. All its other keys are columns that rewards can read.

# %%
with open(OUT / "tasks.jsonl", "w") as file:
    for thing, quality in FACTS.items():
        for question in ("What is the {} like?", "Tell me about the {}.", "How is the {}?", "Do you know the {}?"):
            file.write(json.dumps({"prompt": question.format(thing), "quality": quality}) + "\n")

# %% [markdown]
# A reward is a function in a file: completions in, one number for each out. This one wants the right quality in at most four
# words.
# In a notebook, `%%writefile my_rewards.py` makes the file.

# %%
(OUT / "my_rewards.py").write_text("""
def brief_and_right(prompts, completions, quality, **columns):
    return [float(word in text and len(text.split()) <= 4) for text, word in zip(completions, quality)]
""")

# %% [markdown]
# ## Training
# Each step samples 8 answers to each of 8 prompts, and makes those likelier that are better than the other answers to the same
# prompt.

# %%
run("""
    align.py --config=configs/align/grpo.py --workdir={OUT}/grpo --config.init_from={OUT}/sft
        --config.data.input={OUT}/tasks.jsonl --config.rewards={OUT}/my_rewards.py:brief_and_right
        --config.rollout.max_new_tokens=24 --config.rollout.max_prompt_tokens=32
        --config.data.valid_fraction=0.2 --config.sequence_length=64 --config.batch_size=64 --config.steps=30
        --config.optimizer.learning_rate=5e-4 --config.optimizer.warmup=0
""")

# %% [markdown]
# The mean reward of the answers sampled in the first and in the last steps. `samples.jsonl` and the report have answers to
# held-out tasks: read them, because a model finds every gap in a reward.

# %%
lines = [json.loads(line) for line in open(OUT / "grpo" / "metrics.jsonl")]
rewards = [line["reward"] for line in lines if "reward" in line]
print(f"reward: {sum(rewards[:3]) / 3:.2f} in the first three steps, {sum(rewards[-3:]) / 3:.2f} in the last three")

# %%
import lm

question = [{"role": "user", "content": "How is the lamp?"}]
for name in ("sft", "grpo"):
    model, tokenizer = lm.load(OUT / name)
    answers = lm.generate(model, tokenizer, [question] * 32, max_new_tokens=24, temperature=1.0, seed=0)
    words = sum(len(answer.split()) for answer in answers) / len(answers)
    print(f"{name}: {words:.1f} words an answer, such as {answers[0]!r}")
