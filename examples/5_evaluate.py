"""Measure models on a task of your own, and test whether one is worse than another. About a minute on two cores.

    python examples/5_evaluate.py [FOLDER]

It needs the models of 1_pretrain.py and 2_instruct.py, and trains them first if FOLDER has none.
"""

# %% [markdown]
# # 5. Evaluation

# %%
import json

from shared import FACTS, OUT, run

if not (OUT / "sft" / "report.html").exists():
    run("examples/2_instruct.py {OUT}")

# %% [markdown]
# ## Tasks
# A task is a YAML file with the keys of lm-evaluation-harness. Those of the project (`lm/evals/tasks/specs`) are named instead:
# `--config.tasks=mmlu,bbq`. This one compares the likelihoods of possible continuations.

# %%
(OUT / "facts.yaml").write_text("""
kind: choice
about: "qualities of the things of a small world"
version: 1
test_split: test
doc_to_text: "{{text}}"
doc_to_choice: qualities
doc_to_target: "{{qualities.index(quality)}}"
metric_list: [acc, acc_norm]
""")

# %% [markdown]
# In this one the model answers freely. The first filter finds the word that counts.

# %%
(OUT / "answers.yaml").write_text(r"""
kind: generation
about: "questions about the small world"
version: 1
test_split: test
doc_to_text: "Tell me about the {{thing}}."
doc_to_target: "{{quality}}"
generation_kwargs: {max_gen_toks: 24}
filter_list:
  - name: last_word
    filter:
      - {function: regex, regex_pattern: '(\w+)\.$'}
      - {function: take_first}
metric_list:
  - metric: exact_match
""")

# %% [markdown]
# The items of a task are the files in a folder of its name.

# %%
items = [
    {"thing": thing, "quality": quality, "qualities": sorted(FACTS.values()), "text": text.format(thing)}
    for thing, quality in FACTS.items()
    for text in ("The {} is", "Everyone knows that the {} is")
]
for task in ("facts", "answers"):
    (OUT / "items" / task).mkdir(parents=True, exist_ok=True)
    (OUT / "items" / task / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))

# %% [markdown]
# ## Before and after
# First the base model, which cannot chat, then the chat model. `compare` tests the differences item by item. If a result became
# worse, the exit code would be 1, and `run` would raise.

# %%
run("""
    evaluate.py --config=configs/evaluate/default.py --workdir={OUT}/evals/base --config.checkpoint={OUT}/base
        --config.tasks={OUT}/facts.yaml --config.data_dir={OUT}/items
""")
run("""
    evaluate.py --config=configs/evaluate/default.py --workdir={OUT}/evals/sft --config.checkpoint={OUT}/sft
        --config.tasks={OUT}/facts.yaml --config.data_dir={OUT}/items --config.compare={OUT}/evals/base
""")
run("""
    evaluate.py --config=configs/evaluate/default.py --workdir={OUT}/evals/chat --config.checkpoint={OUT}/sft
        --config.tasks={OUT}/answers.yaml --config.data_dir={OUT}/items --config.chat_template=own
""")

# %% [markdown]
# `results.json` has all figures with their standard errors, `samples.jsonl` each item with its exact prompt.

# %%
for name, task in (("base", "facts"), ("sft", "facts"), ("chat", "answers")):
    results = json.loads((OUT / "evals" / name / "results.json").read_text())[task]
    print(f"{name}, {task}:", {key: round(value, 3) for key, value in results.items() if isinstance(value, float)})
