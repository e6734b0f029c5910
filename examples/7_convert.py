"""Export a model for Hugging Face's libraries and for llama.cpp, and import it again. About a minute on two cores.

    python examples/7_convert.py [FOLDER]

It needs the model of 1_pretrain.py, and trains it first if FOLDER has none.
"""

# %% [markdown]
# # 7. To Hugging Face, to GGUF, and back

# %%
import json
import shutil

from shared import OUT, run

if not (OUT / "base" / "report.html").exists():
    run("examples/1_pretrain.py {OUT}")
for name in ("exported", "imported", "gguf"):  # a conversion never overwrites a folder
    shutil.rmtree(OUT / name, ignore_errors=True)

# %% [markdown]
# ## Export
# The model is written as the first family that computes the same function: here Llama. transformers, vLLM and others read the
# folder, for example with `AutoModelForCausalLM.from_pretrained(folder)`.

# %%
run("-m lm.convert export --workdir={OUT}/base --to={OUT}/exported")
config = json.loads((OUT / "exported" / "config.json").read_text())
print("a", *config["architectures"], "of", ", ".join(sorted(path.name for path in (OUT / "exported").iterdir())))

# %% [markdown]
# ## Import
# Every command takes such a folder in place of a workdir: `--checkpoint`, `--config.init_from`, `lm.load`. An import makes a
# workdir of it.

# %%
run("-m lm.convert import --from={OUT}/exported --workdir={OUT}/imported")
run("-m lm.generate --checkpoint={OUT}/exported --prompt='The fox is' --temperature=0 --max_new_tokens=8")

# %% [markdown]
# ## GGUF
# The same for llama.cpp, Ollama and LM Studio: one file with the weights and the tokenizer, and a `Modelfile` for Ollama. With
# `--dtype=q8_0` the matrices have 8 bits. Such a file can be read here too.

# %%
run("-m lm.convert export --workdir={OUT}/base --to={OUT}/gguf/model.gguf")
print((OUT / "gguf" / "Modelfile").read_text())

# %% [markdown]
# All four are the same model.

# %%
import numpy as np

import lm

logits = []
for name in ("base", "exported", "imported", "gguf/model.gguf"):
    model, tokenizer = lm.load(OUT / name, dtype="float32")
    logits.append(np.asarray(model(np.array([tokenizer.encode("The fox is red.")]))))
print("largest difference of logits:", max(float(np.abs(logits[0] - other).max()) for other in logits[1:]))
