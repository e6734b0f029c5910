"""Does a language model learn to see and to hear? Trained by align.py with fresh encoders, measured on held-out questions.

    python -m benchmarks.senses --init_from=runs/base --text=FOLDER --held_out=FILE --task=digits --out=runs/senses

init_from: a small base model, such as that of configs/train/tiny.py with model.num_layers=4 and steps=600. For scenes, one that
has read of scenes, of which `python -m data.tasks 'scenes_text?point=1'` tells, beside other text (docs/benchmarks.md). text:
what it was trained on, .md or .txt files, whose passages are replayed beside the task. held_out: a text for the bits per byte.
Runs configs/align/senses.py on a built-in task and prints one JSON object: the share of exact answers to held-out questions,
the same with a grey image or silence in place of each medium, and the bits per byte. A finished run is only measured again.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data.chat.examples import prepare_tasks
from data.chat.media.encoding import Kept
from data.chat.records import read_builtin
from data.media import audio, images
from data.tasks.answers import final_answer, same_answer
from data.text.tokenizer import load_tokenizer
from lm.align.rl.rollouts import sampler_of
from lm.align.sft import towers_of
from lm.files.saving import write_lines
from lm.infer.load import load
from lm.runs.workdir import read_config

ROWS = 50  # answers sampled at a time
PASSAGE = 600  # characters of text that is replayed
REPLAY = {"digits": 10, "commands": 20, "scenes": 16}  # records of the task for each passage
MEASURED = {  # the held-out questions: other data than in training, if the task has them
    "digits": "builtin:digits?size=32",
    "commands": "builtin:commands?voices=heldout",
    "scenes": "builtin:scenes?size=60&kinds=colour,count,place&new=things",
}
TRAINED = MEASURED | {
    "commands": "builtin:commands?warp=0.2",
    "scenes": "builtin:scenes?size=60&kinds=colour,count,place,shape,caption&point=1",
}
VISION = {  # an encoder has few patches, and each is a token
    "digits": {"image_size": 32, "patch_size": 16, "num_layers": 2, "shuffle": 1},
    "scenes": {"image_size": 60, "patch_size": 20, "shuffle": 1},  # a patch is a cell of the scene
}
EYES = {task: {f"model.vision.{key}": value for key, value in keys.items()} for task, keys in VISION.items()}
SCENES = {
    "steps": 4400,
    "data.max_examples": 100_000,
    "optimizer.learning_rate": 3e-3,
    "rollout.max_new_tokens": 40,  # a count is said after the places
    "guard.on": False,  # a batch has 50 questions and about three passages, so losses differ too much
}
RUNS = {  # task: the config, and its keys
    "digits": ("senses.py", {"steps": 600, "data.max_examples": 8000} | EYES["digits"]),
    "commands": ("senses.py:audio", {"steps": 1200, "data.max_examples": 16_000}),
    "scenes": ("senses.py", SCENES | EYES["scenes"]),
}
COMMON = {
    "batch_size": 8,
    "dtype": "float32",
    "sequence_length": 256,
    "optimizer.warmup": 50,
    "model.scan_layers": False,
    "valid_every": 500,
    "checkpoint_every": 500,
    "samples_every": 0,
    "rewards": "",  # this file asks the held-out questions
    "data.valid_fraction": 0.01,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init_from", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--held_out", type=Path, required=True)
    parser.add_argument("--task", choices=RUNS, default="digits")
    parser.add_argument("--measured", help="other held-out questions, such as builtin:scenes?size=60&kinds=colour&new=pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/senses"))
    parser.add_argument("options", nargs="*", help="more flags of align.py, after --")
    given = parser.parse_args()
    name, keys = RUNS[given.task]
    workdir, data, begin = given.out / given.task, given.out / f"{given.task}.jsonl", time.perf_counter()
    if not data.exists():
        given.out.mkdir(parents=True, exist_ok=True)
        write_lines(data, examples(given.task, keys["data.max_examples"], given.text))
    keys = COMMON | keys | {"init_from": given.init_from, "data.input": data, "data.max_examples": None}
    line = [sys.executable, "align.py", f"--config=configs/align/{name}", f"--workdir={workdir}"]
    subprocess.run(
        [*line, *(f"--config.{k}={v}" for k, v in keys.items() if v is not None), *given.options], check=True, stdout=sys.stderr
    )
    found = {"task": given.task, "seconds": round(time.perf_counter() - begin)}
    found |= accuracies(workdir, given.measured or MEASURED[given.task])
    found["bits_per_byte"] = [bits_per_byte(model, given.held_out) for model in (given.init_from, workdir)]
    print(json.dumps(found), flush=True)


def examples(task: str, count: int, text: Path) -> list[dict]:
    """Return `count` training records of a task, and one passage of the text for every REPLAY[task] of them, to continue."""
    found = [record.values for record in itertools.islice(read_builtin(TRAINED[task], "train", 0), count)]
    whole = "\n".join(path.read_text(encoding="utf-8") for path in sorted(text.rglob("*")) if path.suffix in (".md", ".txt"))
    draw = random.Random(0)
    for _ in range(count // REPLAY[task]):
        begin = draw.randrange(len(whole) - PASSAGE)
        found.append({"messages": [{"role": "assistant", "content": whole[begin : begin + PASSAGE]}]})
    return found


def accuracies(workdir: Path, task: str) -> dict:
    """Return the shares of exact answers to a task's held-out questions, with their media and blank, also by kind."""
    config, tokenizer = ConfigDict(read_config(workdir)), load_tokenizer(workdir)
    config.data.input = task
    towers = towers_of(config, tokenizer, workdir)
    tasks = prepare_tasks(config, tokenizer, towers=towers, splits=("valid",))[1]
    model, _ = load(workdir)
    graph, params = nnx.split(model)
    sampler = sampler_of(config, graph, tokenizer, tasks, towers=towers)
    found = {}
    for name, asked in (("right", tasks), ("blank", blank(tasks))):
        filled = asked + asked[: -len(asked) % ROWS]  # a constant number of rows avoids recompilation
        rollouts = [
            r for n in range(0, len(filled), ROWS) for r in sampler(params, filled[n : n + ROWS], seed=0, temperature=0)
        ]
        right = [same_answer(final_answer(r.completion), str(t["answer"])) for t, r in zip(asked, rollouts)]
        found[name] = round(float(np.mean(right)), 4)
        kinds = defaultdict(list)
        for task, one in zip(asked, right):
            kinds[task.get("question", task["task"])].append(one)
        found[f"{name} by kind"] = {kind: [round(float(np.mean(x)), 4), len(x)] for kind, x in sorted(kinds.items())}
    return found


def blank(tasks: list[dict]) -> list[dict]:
    """Return the tasks with a grey image of the same size, or with silence of the same length, in place of each medium."""
    return [task | {"prompt_media": [kept._replace(file=blank_of(kept)) for kept in task["prompt_media"]]} for task in tasks]


def blank_of(kept: Kept) -> bytes:
    if kept.kind == "image":
        return images.encode_png(np.full_like(images.decode(kept.file, "an image"), 128))
    return audio.encode_wav(np.zeros_like(audio.decode(kept.file, "a sound")))


def bits_per_byte(model_path, text: Path) -> float:
    """Return the bits per byte of a file's text, in windows of 128 tokens."""
    model, tokenizer = load(model_path)
    data = text.read_text(encoding="utf-8")
    ids = np.asarray(tokenizer.encode(data), np.int32)
    rows = ids[: len(ids) // 129 * 129].reshape(-1, 129)
    graph, params = nnx.split(model)

    @jax.jit
    def nats(params, rows_BT):
        logps = jax.nn.log_softmax(nnx.merge(graph, params)(rows_BT[:, :-1]))
        return -jax.numpy.take_along_axis(logps, rows_BT[:, 1:, None], axis=-1).sum()

    total = sum(float(nats(params, rows[n : n + 1])) for n in range(len(rows)))
    size = sum(int(tokenizer.bytes_per_token[row[1:]].sum()) for row in rows)
    return round(total / np.log(2) / size, 4)


if __name__ == "__main__":
    main()
