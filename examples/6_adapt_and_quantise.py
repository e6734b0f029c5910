"""Train a LoRA adapter on a model of 8-bit integers, merge the two, and quantise a model. About a minute on two cores.

    python examples/6_adapt_and_quantise.py [FOLDER]

It needs the model of 2_instruct.py, and trains it first if FOLDER has none.
"""

# %% [markdown]
# # 6. Adapters and integers

# %%
import json
import shutil

from shared import FACTS, OUT, run

if not (OUT / "sft" / "report.html").exists():
    run("examples/2_instruct.py {OUT}")

# %% [markdown]
# ## An adapter
# Conversations in a new style:

# %%
with open(OUT / "style.jsonl", "w") as file:
    for thing, quality in FACTS.items():
        for question in ("What is the {} like?", "Tell me about the {}.", "How is the {}?", "Do you know the {}?"):
            record = {"prompt": question.format(thing), "completion": f"Everyone knows that the {thing} is {quality}."}
            file.write(json.dumps(record) + "\n")

# %% [markdown]
# Two keys turn any run of `train.py` or `align.py` into QLoRA: the base is kept in 8-bit integers, and only the adapter is
# trained. An adapter takes a higher learning rate than weights.

# %%
run("""
    align.py --config=configs/align/sft.py --workdir={OUT}/lora --config.init_from={OUT}/sft
        --config.data.input={OUT}/style.jsonl --config.model.adapter.rank=8 --config.model.quantization.bits=8
        --config.data.valid_fraction=0.2 --config.sequence_length=64 --config.batch_size=8 --config.steps=40
        --config.optimizer.learning_rate=5e-3
""")

# %% [markdown]
# Merging gives a plain model again, here for Hugging Face's libraries. With `--adapter` instead of `--merge`, the export holds
# the adapter alone, for PEFT.

# %%
shutil.rmtree(OUT / "merged", ignore_errors=True)  # an export never overwrites a folder
run("-m lm.convert export --workdir={OUT}/lora --to={OUT}/merged --merge")

# %%
import lm

question = [{"role": "user", "content": "Tell me about the fox."}]
for name in ("sft", "lora", "merged"):
    model, tokenizer = lm.load(OUT / name)
    print(f"{name}:", *lm.generate(model, tokenizer, [question], max_new_tokens=24, temperature=0))

# %% [markdown]
# ## Integers
# `quantize` works on the parameters of any model. Embedding and head stay as they are, and they are most of a model as small as
# this one.

# %%
from flax import nnx

from lm.adapt.quantize import memory, quantize
from lm.config import Quantization
from lm.model.transformer import skeleton

model, tokenizer = lm.load(OUT / "sft")
params = nnx.state(model)
config, small = quantize(model.config, params, Quantization(bits=8))
print(f"{memory(params):,} bytes as floats, {memory(small):,} with integers")
quantised = nnx.merge(skeleton(config)[0], small)
print("quantised:", *lm.generate(quantised, tokenizer, [question], max_new_tokens=24, temperature=0))
