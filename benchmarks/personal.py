"""What a personal store does for answers, what forgetting leaves, and what an attack finds in its adapters.

python -m benchmarks.personal --model=SmolLM2-135M-Instruct.Q4_1.gguf [--parts=answers,forgetting,bit_equal,recall,membership]

answers: questions about forty made-up facts (benchmarks/personal_facts.py), without and with the store; right is an answer that
contains the fact's word. forgetting: `forget` of a fact, for ten facts one after the other; then its question is asked again.

bit_equal: the commands add, train and forget in one store; in the other the forgotten fact was never added, and the rest in
reverse order. The bytes of the two adapters are compared. With epsilon 8 the other store begins as a copy, because the noise
depends on a secret of the store.

recall: the questions are asked without notes, before a training, after it, and after facts were forgotten one by one.

membership: half of the facts are trained on; the attack guesses from the loss of each fact, minus its loss without an adapter,
which half it belongs to. The figure is the area under the ROC curve with a 95 % interval of a bootstrap over facts: 0.5 finds
nothing. --kinds: epsilon, or epsilon:attack for another --attack than the default; epsilon 0 is without differential privacy.

All answers are greedy. The last line is one JSON object.
"""

import argparse
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.personal_facts import FACTS, made_up

PASSPHRASE, FORGOTTEN, DRAWS = "a passphrase of a benchmark", 10, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--parts", default="answers,forgetting,bit_equal,recall,membership")
    parser.add_argument("--items", type=int, default=40, help="bit_equal: items of a store, of which one is forgotten")
    parser.add_argument("--facts", type=int, default=200, help="membership: half of them are trained on")
    parser.add_argument("--seeds", type=int, default=1, help="membership: trainings of each kind")
    parser.add_argument("--kinds", default="0,8,8:1", help="bit_equal, membership: epsilon; membership: or epsilon:attack")
    parser.add_argument("--epochs", type=int, default=4, help="recall, membership: of each training")
    parser.add_argument("--forget", type=int, default=2, help="recall: facts that are forgotten")
    options = parser.parse_args()
    os.environ["LMCRAFT_PASSPHRASE"] = PASSPHRASE
    from lm.files import compile_cache

    compile_cache.switch_on()
    from lm.personal.speaker import open_speaker

    parts, found = options.parts.split(","), {}
    speaker = open_speaker(options.model) if parts != ["bit_equal"] else None  # the commands load it themselves
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            begin = time.perf_counter()
            found[part] = PARTS[part](speaker, Path(folder) / part, options)
            print(f"{part}: {found[part]}, {time.perf_counter() - begin:.0f} s", flush=True)
    print(json.dumps(found | {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)}))


def answers(speaker, home: Path, options) -> dict:
    store = stored(home, range(len(FACTS)))
    asker = Asker(speaker)
    without = [asker.is_right(None, n) for n in range(len(FACTS))]
    with_it = [asker.is_right(store, n, show=True) for n in range(len(FACTS))]
    return {"facts": len(FACTS), "without": sum(without), "with": sum(with_it), "cited": asker.cited}


def forgetting(speaker, home: Path, options) -> dict:
    store = stored(home, range(len(FACTS)))
    asker = Asker(speaker)
    known = [n for n in range(len(FACTS)) if asker.is_right(store, n)][:FORGOTTEN]
    after = 0
    for n in known:
        [gone] = [item for item in store.items() if item.text == FACTS[n][0]]
        store.forget([gone.id])
        after += asker.is_right(store, n)
    return {"right before": len(known), "right after": after}


def bit_equal(speaker, home: Path, options) -> dict:
    found = {}
    gone, *rest = [fact for fact, _, _ in FACTS[: options.items]]
    home.mkdir()
    for epsilon in sorted({float(kind.partition(":")[0]) for kind in options.kinds.split(",")}):
        never, had = home / f"never-{epsilon}", home / f"had-{epsilon}"
        train = (f"--model={options.model}", f"--epsilon={epsilon}")
        run("add", never, *reversed(rest))
        if epsilon:
            shutil.copytree(never, had)
        else:
            run("add", had, *rest)
        item = run("add", had, gone).split()[0]
        run("train", never, *train)
        run("train", had, *train)
        before = adapter_of(had)
        run("forget", had, item)
        name = f"epsilon {epsilon:g}" if epsilon else "no privacy"
        found[name] = {"equal before": before == adapter_of(never), "equal after": adapter_of(had) == adapter_of(never)}
        print(name, found[name], f"{len(before):,} bytes", flush=True)
    return {"items": options.items} | found


def recall(speaker, home: Path, options) -> dict:
    from lm.personal.adapter import Settings, adapted, train

    def right() -> list[bool]:
        asker = Asker(speaker, adapted(speaker, store))
        return [asker.is_right(None, n, show=True) for n in range(len(FACTS))]

    store, settings = stored(home, range(len(FACTS))), Settings(epochs=options.epochs)
    before = right()
    print(f"  {train(speaker, store, settings)}", flush=True)
    after, forgotten = right(), []
    for n in [n for n in range(len(FACTS)) if after[n] and not before[n]][: options.forget]:
        [gone] = [item for item in store.items() if item.text == FACTS[n][0]]
        store.forget([gone.id])
        print(f"  {train(speaker, store, settings)}", flush=True)
        now = right()
        forgotten.append({"fact": n, "right": now[n], "others right": sum(now) - now[n]})
    return {"facts": len(FACTS), "before": sum(before), "after": sum(after), "forgotten": forgotten}


def membership(speaker, home: Path, options) -> dict:
    from lm.personal.adapter import Settings

    found, facts = {}, [*(fact for fact, _, _ in FACTS), *made_up(options.facts)][: options.facts]
    for kind in options.kinds.split(","):
        epsilon, _, attack = kind.partition(":")
        scores, members = [], []
        for seed in range(options.seeds):
            chosen = set(np.random.default_rng(seed).permutation(len(facts))[: len(facts) // 2].tolist())
            store = stored(home / f"{kind}-{seed}", sorted(chosen), facts)
            settings = Settings(seed=seed, epochs=options.epochs, epsilon=float(epsilon))
            settings = dataclasses.replace(settings, attack=float(attack)) if attack else settings
            scores += losses(speaker, store, settings, facts)
            members += [n in chosen for n in range(len(facts))]
        low, middle, high = interval(np.asarray(scores), np.asarray(members))
        found[kind] = {"auc": round(middle, 3), "interval": [round(low, 3), round(high, 3)]}
        print(kind, found[kind], flush=True)
    return found


class Asker:
    """Asks the questions of facts. cited: how many answers cite the item that holds the fact."""

    def __init__(self, speaker, model=None):
        from lm.infer.engine.request import Sampling
        from lm.personal.answers import open_conversation

        self.speaker, self.cited = speaker, 0
        self.conversation = open_conversation(speaker, model or speaker.model(), Sampling(48, 0.0))

    def is_right(self, store, n: int, show: bool = False) -> bool:
        from lm.personal import answers
        from lm.personal.index import Index
        from lm.personal.vectors import embed, vectors_of

        fact, question, word = FACTS[n]
        found = []
        if store is not None:
            index = Index(store.items(), vectors_of(self.speaker, store))
            found = index.search(question, 3, embed(self.speaker, [question])[0])
        self.conversation.begin("")
        said = "".join(piece.text for piece in answers.ask(self.conversation, question, found))
        cited = [passage.text for _, passage in answers.cited(said, question, found)]
        self.cited += fact in cited
        is_right = word.lower() in said.lower()
        if show and not is_right:
            print(f"  wrong: {question} {said!r} from {[one.text for one in found]}")
        return is_right


def stored(home: Path, numbers, facts=tuple(fact for fact, _, _ in FACTS)):
    """Return a new store of facts."""
    from lm.personal.items import note
    from lm.personal.store import open_store

    store = open_store(home, create=True)
    store.add(note(facts[n]) for n in numbers)
    return store


def run(command: str, home: Path, *arguments: str) -> str:
    """Run a command of lm.personal as a user does, and return what it says."""
    called = [sys.executable, "-m", "lm.personal", command, f"--home={home}", *arguments]
    return subprocess.run(called, stdout=subprocess.PIPE, text=True, check=True).stdout


def adapter_of(home: Path) -> bytes:
    from lm.personal.store import open_store

    return open_store(home).blob("adapter")[0]


def losses(speaker, store, settings, facts) -> list[float]:
    """Train on a store. Return for each fact how much its loss fell."""
    from lm.personal.adapter import adapted, train
    from lm.personal.items import note

    print(f"  {train(speaker, store, settings)}", flush=True)
    items = [note(fact) for fact in facts]
    return (losses_of(speaker, speaker.model(), items) - losses_of(speaker, adapted(speaker, store), items)).tolist()


def losses_of(speaker, model, items) -> np.ndarray:
    """Return the mean negative log-likelihood of each item's learnt tokens, in nats."""
    import jax
    from flax import nnx

    from lm.personal.adapter import batches, rows_of
    from lm.train.step import token_loss

    graph, params = nnx.split(model)

    @jax.jit
    def row_losses(params, batch):
        def loss(row):
            return token_loss(nnx.merge(graph, params), jax.tree.map(lambda x: x[None], row), z_loss=0.0)[0]

        return jax.vmap(loss)(batch)

    found = np.zeros(len(items))
    for batch, owner in batches([rows_of(speaker, item) for item in items]):
        np.add.at(found, owner, np.asarray(row_losses(params, batch)))
    return found


def interval(scores_N, members_N) -> tuple[float, float, float]:
    """Return the 2.5 % quantile, the value, and the 97.5 % quantile of the area under the curve."""
    draws = np.random.default_rng(0).integers(len(scores_N), size=(DRAWS, len(scores_N)))
    values = [auc(scores_N[draw], members_N[draw]) for draw in draws if 0 < members_N[draw].sum() < len(draw)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), auc(scores_N, members_N), float(high)


def auc(scores_N, members_N) -> float:
    """Return the probability that a member's score is above that of another, a tie counting half."""
    inside, outside = scores_N[members_N], scores_N[~members_N]
    above = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    return float(above)


PARTS = {"answers": answers, "forgetting": forgetting, "bit_equal": bit_equal, "recall": recall, "membership": membership}

if __name__ == "__main__":
    main()
