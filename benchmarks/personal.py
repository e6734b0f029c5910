"""What a personal store does for answers, what forgetting leaves, and what an attack finds in its adapters.

python -m benchmarks.personal --model=SmolLM2-135M-Instruct.Q4_1.gguf [--parts=answers,forgetting,membership --seeds=3]

answers: questions about forty made-up facts (benchmarks/personal_facts.py), without and with the store; right is an answer that
contains the fact's word. forgetting: `forget` of a fact, for ten facts one after the other; then its question is asked again.
membership: half of the facts are trained on; the attack guesses from the loss of each fact, minus its loss without an adapter,
which half it belongs to. The figure is the area under the ROC curve with a 95 % interval of a bootstrap over facts: 0.5 finds
nothing. Without differential privacy and with epsilon 8 and 1. All answers are greedy. The last line is one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.personal_facts import FACTS

PASSPHRASE, FORGOTTEN, DRAWS = "a passphrase of a benchmark", 10, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--parts", default="answers,forgetting,membership")
    parser.add_argument("--seeds", type=int, default=3, help="membership: trainings of each kind")
    parser.add_argument("--epsilons", default="0,8,1", help="membership: 0 is without differential privacy")
    parser.add_argument("--epochs", type=int, default=10, help="membership: of each training")
    options = parser.parse_args()
    os.environ["LMCRAFT_PASSPHRASE"] = PASSPHRASE
    from lm import compile_cache

    compile_cache.switch_on()
    from lm.personal.adapter import peak_bytes
    from lm.personal.speaker import open_speaker

    speaker, found = open_speaker(options.model), {}
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts.split(","):
            begin = time.perf_counter()
            found[part] = PARTS[part](speaker, Path(folder) / part, options)
            print(f"{part}: {found[part]}, {time.perf_counter() - begin:.0f} s", flush=True)
    print(json.dumps(found | {"peak_gb": round(peak_bytes() / 1e9, 2)}))


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


def membership(speaker, home: Path, options) -> dict:
    from lm.personal.adapter import Settings

    found = {}
    for epsilon in map(float, options.epsilons.split(",")):
        scores, members = [], []
        for seed in range(options.seeds):
            chosen = set(np.random.default_rng(seed).permutation(len(FACTS))[: len(FACTS) // 2].tolist())
            store = stored(home / f"{epsilon}-{seed}", sorted(chosen))
            settings = Settings(seed=seed, epochs=options.epochs, epsilon=epsilon)
            scores += losses(speaker, store, settings)
            members += [n in chosen for n in range(len(FACTS))]
        low, middle, high = interval(np.asarray(scores), np.asarray(members))
        name = f"epsilon {epsilon:g}" if epsilon else "no privacy"
        found[name] = {"auc": round(middle, 3), "interval": [round(low, 3), round(high, 3)]}
        print(name, found[name], flush=True)
    return found


class Asker:
    """Asks the questions of facts. cited: how many answers cite the item that holds the fact."""

    def __init__(self, speaker):
        from lm.infer.decode import Sampling
        from lm.personal.answers import open_conversation

        self.speaker, self.cited = speaker, 0
        self.conversation = open_conversation(speaker, speaker.model(), Sampling(48, 0.0))

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
            print(f"  wrong: {question} {said!r} from {[one.passage.text for one in found]}")
        return is_right


def stored(home: Path, numbers):
    """Return a new store of facts."""
    from lm.personal.items import note
    from lm.personal.store import open_store

    store = open_store(home, create=True)
    store.add(note(FACTS[n][0]) for n in numbers)
    return store


def losses(speaker, store, settings) -> list[float]:
    """Train on a store. Return for each fact how much its loss fell."""
    from lm.personal.adapter import adapted, loss_of, train
    from lm.personal.items import note

    print(f"  {train(speaker, store, settings, memory_gb=4)}", flush=True)
    before, after = speaker.model(), adapted(speaker, store)
    items = [note(fact) for fact, _, _ in FACTS]
    return [loss_of(speaker, before, item) - loss_of(speaker, after, item) for item in items]


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


PARTS = {"answers": answers, "forgetting": forgetting, "membership": membership}

if __name__ == "__main__":
    main()
