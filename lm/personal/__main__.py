r"""A store of your own notes, files and exchanges, encrypted on this machine. A model answers from it and learns from it.

    python -m lm.personal add --home=DIR 'The cabin key is under the blue pot.' letters/ exchanges.jsonl
    python -m lm.personal ask --home=DIR --model=MODEL 'Where is the cabin key?'
    python -m lm.personal train --home=DIR [--epsilon=1]
    python -m lm.personal forget --home=DIR ITEM

Commands:
  add TEXT or FILE or FOLDER…   store notes, text files, and exchanges (JSON lines with messages, as /save of lm.chat writes);
                                - reads a note from the standard input. The first one makes the store. A text on the command
                                line stays in the shell's history, and others see it while the command runs: - or a file do not
  list                          list the items: id, date, kind, beginning
  search WORDS                  show the passages that are found
  ask QUESTION                  answer from the store, and name the items behind [1], [2]; without QUESTION: a conversation. The
                                standard input gives one question a line. --keep stores the exchanges.
  train                         train a small adapter on all items, which ask uses from then on; run it again to resume it.
                                Flags that are not given have the values of the last training.
  forget ITEM…                  remove items (ids of list, or their beginnings) from the store, the index and the adapter, which
                                is trained anew from the rest: bit for bit as if they had never been there
  export FILE                   write all items, decrypted, as JSON lines, which add reads
  status                        what is there, and what trainings have revealed (epsilon)
  wipe --yes                    destroy the key and all files

A passphrase protects the store: asked for on a terminal, or in the file --passphrase_file, or in the variable
LMCRAFT_PASSPHRASE. With --keyring at the first add the key lies in the keyring of the desktop. Nothing can recover a lost key.
The program cuts itself off from the network when it starts. docs/personal.md says what is protected against whom.
MODEL is a workdir, a Hugging Face folder or a GGUF file; the store remembers it.
Needs: pip install -r requirements/personal.txt
"""

import contextlib
import difflib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags

from lm import cli
from lm.errors import UserError, runnable
from lm.files import saving
from lm.files.untrusted import HIDDEN, shown
from lm.personal import items as reading
from lm.personal import key, offline
from lm.personal.index import Index, Passage
from lm.personal.store import Store, open_store, wipe

FLAGS = flags.FLAGS
BEGINNING = 60  # characters of an item in a list
SHORTEST = 4  # characters of the beginning of an id
TRAINING = ("seed", "epochs", "batch", "rank", "learning_rate", "epsilon", "delta", "clip", "attack")  # flags of a training


def define_flags() -> None:
    FLAGS.set_gnu_getopt(True)  # a command may stand before flags
    flags.DEFINE_string("home", None, "The folder of the store.")
    flags.DEFINE_string("model", None, "The model that answers; default: the one that the store used last.")
    flags.DEFINE_string("passphrase_file", "", "A file with the passphrase, such as one of a password manager.")
    flags.DEFINE_boolean("keyring", False, "add, for a new store: keep its key in the keyring of the desktop.")
    flags.DEFINE_integer("passages", 3, "search, ask: passages at most; ask with 0: what the model knows alone.", lower_bound=0)
    flags.DEFINE_boolean("adapter", True, "ask: use the adapter, if one was trained.")
    flags.DEFINE_boolean("examples", True, "ask: show two worked examples first. A model trained to read notes needs none.")
    flags.DEFINE_boolean("keep", False, "ask: store the exchanges.")
    flags.DEFINE_integer("max_new_tokens", 96, "ask: tokens of an answer at most.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "ask: sampling temperature; 0: greedy.", lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "Seed of sampling and of training.", lower_bound=0)
    flags.DEFINE_integer("epochs", 4, "train: how often each item is read.", lower_bound=1)
    flags.DEFINE_integer("batch", 8, "train: items of an update.", lower_bound=1)
    flags.DEFINE_integer("rank", 8, "train: rank of the adapter.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 1e-3, "train: of Adam, after a warm-up of 5 updates.", lower_bound=0.0)
    flags.DEFINE_float("epsilon", 0.0, "train: differential privacy with this epsilon, of each item; 0: none.", lower_bound=0.0)
    flags.DEFINE_float("delta", 1e-5, "train: the delta that belongs to it; well below 1 / items.", 0.0, 1.0)
    flags.DEFINE_float("clip", 0.5, "train: with --epsilon, norm to which an item's gradient is clipped.", lower_bound=1e-9)
    flags.DEFINE_float(
        "attack",
        0.55,
        "train: with --epsilon, the largest area under the ROC curve that any attack on membership may reach; 0.5 is a guess, "
        "1 leaves it to epsilon alone.",
        0.501,
        1.0,
    )
    flags.DEFINE_boolean("yes", False, "wipe: do it.")


def main() -> None:
    _, *arguments = cli.parse_flags(sys.argv, takes_arguments=True)
    command, *arguments = arguments or [""]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(COMMANDS)}; --help explains them"
        raise UserError(f"no command {shown(command)!r}; {hint}" if command else hint)
    if not FLAGS.home:
        example = runnable(f"python -m lm.personal {command} --home=DIR")
        raise UserError(f"--home is missing: {example}; --help shows examples")
    takes, run = COMMANDS[command]
    if arguments and not takes:
        raise UserError(f"{command} takes no {shown(arguments[0])!r}: put flags before it, and write --NAME=VALUE")
    home = Path(FLAGS.home).expanduser().absolute()
    os.umask(0o077)
    offline.cut_off(keeps_local=True)  # the keyring is asked through a socket of this machine
    if command == "wipe":
        _wipe(home)
        return
    found = reading.from_arguments(arguments) if command == "add" else arguments  # before anything is made
    if command == "add":
        cli.check_folder(home, "home")
    store = open_store(home, FLAGS.passphrase_file, create=command == "add", in_keyring=FLAGS.keyring)
    offline.cut_off()
    run(store, found)
    if command == "add" and any(map(reading.is_text, arguments)):
        print(f"lm.personal: {reading.HISTORY}", file=sys.stderr, flush=True)


def _add(store: Store, items: list[reading.Item]) -> None:
    new = store.add(items)
    for item in new:
        print(_line(item))
    there = f", {len(items) - len(new)} were there already" if len(new) < len(items) else ""
    print(f"stored {len(new)} of {len(items)} items{there}")


def _list(store: Store, _) -> None:
    items = store.items()
    for item in items:
        print(_line(item))
    if not items:
        print("the store is empty")


def _search(store: Store, words: list[str]) -> None:
    question = " ".join(words)
    if not question.strip():
        raise UserError("search what? python -m lm.personal search --home=DIR cabin key")
    passages = Index(store.items()).search(question, FLAGS.passages)
    for number, passage in enumerate(passages, start=1):
        _cite(number, passage)
    if not passages:
        print("nothing is found")


def _ask(store: Store, words: list[str]) -> None:
    speaker = _speaker(store)
    from lm.infer.engine.request import Sampling
    from lm.personal import answers
    from lm.personal.adapter import adapted
    from lm.personal.vectors import embed, vectors_of

    model = adapted(speaker, store) if FLAGS.adapter else speaker.model()
    index = Index(store.items(), vectors_of(speaker, store)) if FLAGS.passages else None
    sampling = Sampling(FLAGS.max_new_tokens, FLAGS.temperature, seed=FLAGS.seed)
    conversation = answers.open_conversation(speaker, model, sampling)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    for question in [" ".join(words)] if words else _typed() if is_terminal else sys.stdin:
        if not (question := question.strip()):
            continue
        passages: list[Passage] = []
        if index is not None:
            passages = index.search(question, FLAGS.passages, embed(speaker, [question])[0])
        answer = ""
        with contextlib.closing(answers.ask(conversation, question, passages, _tell, FLAGS.examples)) as pieces:
            for piece in pieces:
                answer += piece.text
                print(HIDDEN.sub(lambda found: found[0] if found[0] in "\n\t" else "\ufffd", piece.text), end="", flush=True)
        print()
        for number, passage in answers.cited(answer, question, passages):
            _cite(number, passage)
        sys.stdout.flush()
        if FLAGS.keep:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            store.add([reading.exchange(messages, "the exchange")])


def _train(store: Store, _=None) -> None:
    last = store.settings.get("training", {})
    chosen = {}
    for name in TRAINING:
        flag = FLAGS[name]
        chosen[name] = last.get(name, flag.value) if flag.using_default_value else flag.value
    speaker = _speaker(store)
    store.set(training=chosen)
    try:
        print(_trained(speaker, store, chosen))
    except UserError:
        store.set(training=last)  # a mistake is not remembered
        raise


def _trained(speaker, store: Store, settings: dict) -> str:
    from lm.personal.adapter import Settings, train

    return train(speaker, store, Settings(**settings))


def _forget(store: Store, names: list[str]) -> None:
    if not names:
        raise UserError("forget what? give the ids that list shows")
    ids = store.ids()
    gone = [_id_of(name, ids) for name in names]
    before = store.about("adapter") or store.about("training")
    lost_adapter = store.forget(gone)
    print(f"forgot {len(set(gone))} of {len(ids)} items")
    if not lost_adapter:
        return
    if not store.ids():
        print("the adapter that was trained on them is deleted")
        return
    print("the adapter that was trained on them is deleted, and is trained anew without them; train resumes that", flush=True)
    print(_trained(_speaker(store), store, before["settings"]))


def _export(store: Store, names: list[str]) -> None:
    if len(names) != 1 or not names[0].endswith(".jsonl"):
        raise UserError("export where? name one new file that ends in .jsonl")
    file = Path(names[0]).expanduser()
    if file.exists():
        raise UserError(f"{file} exists: name a new file")
    items = store.items()
    saving.write_lines(file, map(reading.to_line, items), ensure_ascii=True)
    print(f"wrote {len(items)} items to {file}, which is not encrypted")


def _status(store: Store, _) -> None:
    items = store.items()
    counts = {kind: sum(item.kind == kind for item in items) for kind in reading.KINDS}
    kinds = ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in counts.items())
    print(f"{store.home}: {kinds}; {store.bytes():,} bytes on disk")
    print(f"key: in {'the keyring' if key.is_in_keyring(store.home) else 'a passphrase'}")
    print(f"model: {shown(store.settings.get('model', 'none yet; ask and train take --model'))}")
    about, half = store.about("adapter"), store.about("training")
    print(f"adapter: {about['said']}" if about else "adapter: none; train makes one")
    if half:
        print(f"training: stopped after {half['updates']} of {half['of']} updates; train resumes it")
    spent = store.settings.get("trainings", [])
    if spent:
        print(f"trainings: {len(spent)}, epsilon {', '.join(f'{one:g}' if one else 'unbounded' for one in spent)}; they add up")


def _wipe(home: Path) -> None:
    if not (home / key.FILE).exists():
        raise UserError(f"{home} holds no store: name its --home")
    if not FLAGS.yes:
        raise UserError(f"wipe destroys all items in {home} for good: add --yes to do it")
    wipe(home)
    print(f"{home}: the key is destroyed and all files are deleted")


COMMANDS: dict[str, tuple[bool, Callable]] = {
    "add": (True, _add),
    "list": (False, _list),
    "search": (True, _search),
    "ask": (True, _ask),
    "train": (False, _train),
    "forget": (True, _forget),
    "export": (True, _export),
    "status": (False, _status),
    "wipe": (False, _wipe),
}


def _speaker(store: Store):
    """Return the model that --model or the store names, and let the store remember it."""
    from lm.files import compile_cache

    compile_cache.switch_on()
    from lm.personal.speaker import open_speaker

    path = str(Path(FLAGS.model).absolute()) if FLAGS.model and "://" not in FLAGS.model else FLAGS.model
    path = path or store.settings.get("model")
    if not path:
        raise UserError("--model is missing: name a workdir, a Hugging Face folder or a GGUF file")
    speaker = open_speaker(path)
    if store.settings.get("model") != path:
        store.set(model=path)
    return speaker


def _id_of(name: str, ids: list[str]) -> str:
    found = [one for one in ids if len(name) >= SHORTEST and one.startswith(name.lower())]
    if len(found) != 1:
        reason = "is the beginning of several ids" if found else "is no id of an item"
        raise UserError(f"{shown(name)} {reason}: list shows the ids; at least {SHORTEST} characters of one are needed")
    return found[0]


def _typed():
    """Yield the questions that are typed, until Ctrl-D."""
    print("Ctrl-D leaves")
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _line(item: reading.Item) -> str:
    day = time.strftime("%Y-%m-%d", time.localtime(item.time))
    text = " ".join(f"{item.name}: {item.shown}".removeprefix(": ").split())
    return shown(f"{item.id}  {day}  {item.kind:8}  {text if len(text) <= BEGINNING else text[: BEGINNING - 1] + '…'}")


def _cite(number: int, passage: Passage) -> None:
    print(f"[{number}] {_line(passage.item._replace(text=passage.text, messages=()))}")


def _tell(line: str) -> None:
    print(f"lm.personal: {shown(line)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main, __doc__)
    sys.stdout.flush()
    os._exit(0)  # an engine's thread may still compile
