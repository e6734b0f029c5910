"""Curate raw pages into a corpus to train on. Half a minute on two cores.

    python examples/0_curate.py [FOLDER]

Or run the cells one by one, in an editor that knows `# %%`.
"""

# %% [markdown]
# # 0. Curation
# All examples write to one folder, `OUT`. `run` runs a command and shows it, so that you can copy it.

# %%
import json
import random

import pyarrow.parquet as pq
from shared import OUT, run

# %% [markdown]
# ## Raw pages
# A crawl in small: good pages, copies of them, pages of links, and one that holds somebody's address.

# %%
draw = random.Random(0)
THINGS = ("fox", "river", "lamp", "garden", "window", "letter", "engine", "mountain", "kitchen", "violin")
VERBS = ("finds", "watches", "remembers", "repairs", "forgets", "carries")


def page() -> str:
    sentences = (
        f"The {draw.choice(THINGS)} {draw.choice(VERBS)} that the {draw.choice(THINGS)} of {draw.choice(THINGS)} number "
        f"{draw.randrange(1000)} is near the {draw.choice(THINGS)}, and goes to be with it."
        for _ in range(20)
    )
    return "\n".join(sentences)


good = [page() for _ in range(40)]
copies = [text.replace("near", "close to", 1) for text in good[:10]]
links = ["\n".join(f"- link {draw.randrange(100)}" for _ in range(60)) for _ in range(10)]
private = [
    good[-1].replace("goes to be with it.", "writes to jane.doe@example.org.", 1).replace("number", "house") + "\n" + page()
]
(OUT / "crawl").mkdir(exist_ok=True)
for name, texts in (("good", good), ("copies", copies), ("links", links), ("private", private)):
    rows = [json.dumps({"id": f"{name}-{n}", "text": text}) for n, text in enumerate(texts)]
    (OUT / "crawl" / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

# %% [markdown]
# ## A recipe
# A recipe names stages, which measure and rewrite the documents, and rules, which drop some. `configs/curate` holds published
# recipes, and `configs/curate/default.py` explains every key. This is one of our own, a config file like any other.

# %%
(OUT / "recipe.py").write_text("""
from configs.curate import default


def get_config():
    config = default.get_config()
    config.stages = "gopher_quality,near_duplicates,pii"
    default.gopher_quality(config.rules)
    config.rules.near_duplicate_keep = (1, 1)
    return config
""")
run("curate.py --config={OUT}/recipe.py --workdir={OUT}/corpus --config.input=web={OUT}/crawl")

# %% [markdown]
# ## What stayed, what went, and why
# `report.html` has the same as a page, with a histogram of every measure.

# %%
report = json.loads((OUT / "corpus" / "report.json").read_text())
reasons: dict[str, int] = {}
for languages in report["figures"]["funnel"].values():
    for rows in languages.values():
        for reason, (documents, _) in rows.items():
            reasons[reason] = reasons.get(reason, 0) + documents
for reason, documents in sorted(reasons.items(), key=lambda item: -item[1]):
    print(f"{reason}: {documents}")
print(f"the report: {OUT}/corpus/report.html")

# %% [markdown]
# The address is masked.

# %%
kept = [row for path in sorted((OUT / "corpus" / "documents").iterdir()) for row in pq.read_table(path).to_pylist()]
print("masked:", sum("<EMAIL>" in row["text"] for row in kept), "left:", sum("jane.doe" in row["text"] for row in kept))
