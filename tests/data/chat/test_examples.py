"""Masks hold exactly what an assistant wrote, packing keeps each trained token once, and what is lost is counted."""

import json
import random

import ml_collections
import numpy as np
import pytest

from data.chat.example_batches import ExampleBatches
from data.chat.example_encoding import Encoder, Sequenced
from data.chat.example_files import Row
from data.chat.examples import packed, prepare_examples, prepare_tasks
from data.chat.messages import Conversation, Labelled, Pair
from data.chat.template import CHAT_TEMPLATE
from data.text import sentencepiece_tokenizer as ours
from data.text.hf_tokenizer import HFTokenizer
from lm.errors import UserError
from tests.data.chat import hf_examples
from tests.data.chat.test_chat import CHATML, CONTENTS, HEADERS, QWEN, THINKING
from tests.data.chat.test_conversations import assistant, system, user
from tests.data.text.test_sentencepiece_tokenizer import corpus

T = 48
WORDS = "the model reads some words of code and then it writes more".split()


def unmarked(template):
    """The same text without marks; tags that do nothing, since a tag also takes the line break behind it away."""
    return template.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "tokenizer.model"
    return ours.train(corpus(), path, vocab_size=400, sample_bytes=1 << 18, seed=0, threads=2)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": CHATML}
    return HFTokenizer(hf_examples.folder(tmp_path_factory.mktemp("hf"), hf_examples.gpt2(), tokenizer_config=names))


def text(draw, most=12):
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def talks(count, seed=0, contents=None):
    """Conversations of several turns, with a system message or without, of words or of hostile pieces."""
    draw = random.Random(seed)
    say = (lambda: "".join(draw.choices(contents, k=draw.randint(0, 5)))) if contents else lambda: text(draw)
    for _ in range(count):
        turns = [make(say()) for _ in range(draw.randint(1, 3)) for make in (user, assistant)]
        yield ([system(say())] if draw.random() < 0.5 else []) + turns


def spelled(tokenizer, messages):
    """The slow twin of our format: ids and mask, message by message."""
    ids, trained = [tokenizer.bos_id], [False]
    for message in messages:
        words = [*tokenizer.encode(message["content"]), tokenizer.controls["<|end|>"]]
        ids += [tokenizer.controls[f"<|{message['role']}|>"], *words]
        trained += [False] + [message["role"] == "assistant"] * len(words)
    return ids, trained


def configured(input, **changes):
    config = ml_collections.ConfigDict(
        {
            "seed": 0,
            "sequence_length": T,
            "chat_template": None,
            "method": "dpo",
            "rollout": {"max_prompt_tokens": 20},
            "data": {"input": str(input), "valid_fraction": 0.1, "max_examples": None, "max_valid_examples": None},
        }
    )
    config.update_from_flattened_dict({key: value for key, value in changes.items() if "." in key})
    config.update({key: value for key, value in changes.items() if "." not in key})
    return config


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Masks.


@pytest.mark.parametrize("contents", [None, CONTENTS])
def test_an_assistants_words_and_end_symbols_are_trained_and_nothing_else(own, contents):
    encoder = Encoder(own)
    for talk in talks(60, contents=contents):
        ids, trained = spelled(own, talk)
        whole = encoder.conversation(Conversation([*talk, user("and then?")])).learnt()
        assert whole.ids.tolist() == ids and whole.trained.tolist() == trained
        assert whole.trained[-1] and whole.ids[-1] == own.controls["<|end|>"]


def test_words_of_others_do_not_move_the_mask(own):
    draw, encoder = random.Random(3), Encoder(own)
    for talk in talks(40, seed=1):
        before = encoder.conversation(Conversation(talk))
        changed = [dict(message) for message in talk]
        for message in changed:
            if message["role"] != "assistant":  # as many tokens, others
                message["content"] = "".join(draw.choice("qxz#%") for _ in own.encode(message["content"]))
        after = encoder.conversation(Conversation(changed))
        assert (after.ids != before.ids).any()
        assert after.trained.tolist() == before.trained.tolist()
        assert after.ids[after.trained].tolist() == before.ids[before.trained].tolist()


def test_of_a_pair_only_the_answers_are_trained(own):
    encoder = Encoder(own)
    for talk, contents in zip(talks(40, seed=2), [None, CONTENTS] * 20):
        [answer] = next(talks(1, seed=len(talk), contents=contents))[-1:]
        pair = encoder.pair(Pair(talk[:-1], talk[-1:], [answer]))
        for sequence, message in zip(pair, (talk[-1], answer)):
            ids, trained = spelled(own, [*talk[:-1], message])
            words = len(own.encode(message["content"])) + 1
            assert sequence.ids.tolist() == ids
            assert sequence.trained.tolist() == [False] * (len(ids) - words) + trained[-words:]
        whole, shared = encoder.labelled(Labelled(talk[:-1], talk[-1:], True))
        assert whole.ids.tolist() == pair[0].ids.tolist()
        assert whole.ids[:shared].tolist() == encoder.prompt_ids(talk[:-1])
        assert whole.trained[shared:].all() and not whole.trained[:shared].any()


def test_answers_of_several_turns_or_that_begin_with_the_users(own):
    prompt, chosen = [user("a"), assistant("b")], [user("c"), assistant("d")]
    rejected = [assistant("x"), user("y"), assistant("z")]
    for sequence, answer in zip(Encoder(own).pair(Pair(prompt, chosen, rejected)), (chosen, rejected)):
        ids, trained = spelled(own, prompt + answer)
        before = len(spelled(own, prompt)[0])
        assert sequence.ids.tolist() == ids
        assert sequence.trained.tolist() == [False] * before + trained[before:]


def test_a_template_without_marks_gives_the_mask_that_marks_would(published):
    encoders = Encoder(published), Encoder(published, unmarked(CHATML))
    for talk in talks(20, seed=3):
        [one, other] = (encoder.conversation(Conversation(talk)) for encoder in encoders)
        assert one.ids.tolist() == other.ids.tolist() and one.trained.tolist() == other.trained.tolist()
        assert one.learnt().ids[-1] == published.controls["<|im_end|>"] != one.ids[-1]
        pairs = [encoder.pair(Pair(talk[:-1], talk[-1:], [assistant("so")])) for encoder in encoders]
        for one, other in zip(*pairs):
            assert one.ids.tolist() == other.ids.tolist() and one.trained.tolist() == other.trained.tolist()


def test_a_template_that_hides_an_assistants_words_is_refused(published, tmp_path):
    talk = [user("a"), assistant("<think>\nb\n</think>\n\nc"), user("d"), assistant("e")]
    with pytest.raises(UserError, match="^chat_template: .*generation"):
        Encoder(published, unmarked(THINKING)).conversation(Conversation(talk))
    assert Encoder(published, THINKING).conversation(Conversation(talk)).trained.any()
    # Its prompt opens a thought that the answer has not: the answer begins where they part.
    for sequence in Encoder(published, THINKING).pair(Pair(talk[:-1], talk[-1:], [assistant("f")])):
        assert published.decode(sequence.ids[sequence.trained]) in ("e", "f")
    with pytest.raises(UserError, match="without a chat template"):
        Encoder(HFTokenizer(hf_examples.folder(tmp_path, hf_examples.gpt2())))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, QWEN])
def test_thoughts_are_trained_or_only_what_follows_them(own, published, template):
    tokenizer = own if template == CHAT_TEMPLATE else published
    talk = Conversation([user("3 + 4 <think>"), assistant("7, <think>no</think>") | {"reasoning_content": "it is 6 or 7"}])
    plain = Conversation([user("a"), assistant("b")])
    written = []
    for thoughts in (True, False):
        encoder = Encoder(tokenizer, template, thoughts=thoughts)
        sequence = encoder.conversation(talk)
        written.append(tokenizer.decode(sequence.ids[sequence.trained]))
        assert "it is 6 or 7" in tokenizer.decode(sequence.ids)  # it is read in any case
        if template == CHAT_TEMPLATE:
            assert encoder.conversation(plain).trained.sum() == len(tokenizer.encode("b")) + 1
    assert written == ["<think>\nit is 6 or 7\n</think>\n\n7, <think>no</think>", "\n\n7, <think>no</think>"]


def test_an_end_symbol_that_also_ends_documents_is_trained(published):
    talk = [user("a"), assistant("b c"), user("d"), assistant("e")]
    sequence = Encoder(published, HEADERS).conversation(Conversation(talk))
    assert published.decode(sequence.ids[sequence.trained]) == "b ce"
    assert (sequence.ids[sequence.trained] == published.controls["<|endoftext|>"]).sum() == 2


def test_tools_stand_in_the_prompt_and_calls_are_trained(published):
    call = {"type": "function", "function": {"name": "find", "arguments": {"n": 3}}}
    messages = [user("a"), {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "5"}]
    tools = [{"name": "find"}]
    sequence = Encoder(published).conversation(Conversation([*messages, assistant("five")], tools))
    written = published.decode(sequence.ids[sequence.trained])
    assert '"n": 3' in written and "five" in written and "5" not in written
    assert '{"name": "find"}' in published.decode(sequence.ids[~sequence.trained])


def naive(sequences, width):
    """Best fit, the longest first, by looking at every bin: the slow twin."""
    bins = []
    for sequence in sorted(sequences, key=lambda s: len(s.ids), reverse=True):
        fitting = [b for b in bins if sum(len(s.ids) for s in b) + len(sequence.ids) <= width]
        if fitting:
            max(fitting, key=lambda b: sum(len(s.ids) for s in b)).append(sequence)
        else:
            bins.append([sequence])
    return bins


def test_packing_keeps_every_conversation_whole_and_once(own):
    encoder = Encoder(own)
    sequences = [encoder.conversation(Conversation(talk)).learnt(T + 1) for talk in talks(150, seed=4)]
    sequences = [sequence for sequence in sequences if len(sequence.ids)]
    rows = list(packed((Row((sequence,)) for sequence in sequences), T + 1))
    found = []
    for (whole,), columns in rows:
        assert len(whole.ids) <= T + 1
        for segment in range(1, columns["segments"].max() + 1):
            where = columns["segments"] == segment
            found.append((whole.ids[where].tolist(), whole.trained[where].tolist()))
    assert sorted(found) == sorted((s.ids.tolist(), s.trained.tolist()) for s in sequences)
    expected = sorted(sum(len(s.ids) for s in b) for b in naive(sequences, T + 1))
    assert sorted(len(row.parts[0].ids) for row in rows) == expected


def test_what_is_longer_than_a_row_loses_its_end():
    sequence = Sequenced(np.arange(10), np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 0], bool))
    assert sequence.learnt().ids.tolist() == list(range(9))
    assert sequence.learnt(8).ids.tolist() == list(range(8))
    assert sequence.learnt(6).ids.tolist() == list(range(4)) == sequence.learnt(4).ids.tolist()
    assert sequence.learnt(2).ids.tolist() == []


# On disk.


def rows_of(columns):
    """(tokens, trained) of each sequence on disk."""
    ends = columns["ends"].reshape(-1)
    begins = [0, *ends[:-1]]
    return [(columns["tokens"][b:e].tolist(), columns["trained"][b:e].tolist()) for b, e in zip(begins, ends)]


def test_pairs_on_disk_are_the_encoded_ones_and_long_ones_lose_their_ends(own, tmp_path):
    draw = random.Random(5)
    answers = [([assistant(text(draw, 30))], [assistant(text(draw))]) for _ in range(40)]
    pairs = [Pair([user(f"{n} {text(draw, 8)}")], *both, n / 2) for n, both in enumerate(answers)]
    names = ("prompt", "chosen", "rejected", "margin")
    path = write(tmp_path / "pairs.jsonl", [dict(zip(names, pair)) for pair in pairs])
    train, valid, counts = prepare_examples(configured(path), tmp_path / "run", own, "pair")
    assert counts["train"]["examples"] + counts["valid"]["examples"] == 40 and counts["valid"]["examples"]
    expected = {}
    for pair in pairs:
        expected[pair.margin] = [(s.ids.tolist()[:T], s.trained.tolist()[:T]) for s in Encoder(own).pair(pair)]
    truncated = 0
    for columns, count in ((train, counts["train"]), (valid, counts["valid"])):
        sequences = rows_of(columns)
        assert len(columns["ends"]) == len(columns["margin"]) == count["rows"] == count["examples"]
        for n, margin in enumerate(columns["margin"].tolist()):
            assert sequences[2 * n : 2 * n + 2] == expected.pop(margin)
        assert count["tokens"] == len(columns["tokens"]) and count["trained_tokens"] == int(columns["trained"].sum())
        assert count["padding"] == 2 * T * count["rows"] - count["tokens"]
        truncated += count["truncated"]
    assert not expected and truncated == sum(any(len(s.ids) > T for s in Encoder(own).pair(pair)) for pair in pairs) > 5

    # A reward is read at an answer's end, so that nothing may be cut.
    *_, counts = prepare_examples(configured(path, method="reward"), tmp_path / "run", own, "pair")
    assert counts["train"]["truncated"] == counts["valid"]["truncated"] == 0
    dropped = sum(counts[split]["dropped"].get("longer than sequence_length", 0) for split in ("train", "valid"))
    assert dropped == truncated == 40 - counts["train"]["examples"] - counts["valid"]["examples"]


def test_every_trained_token_is_a_target_exactly_once(own, tmp_path):
    encoder = Encoder(own)
    fitting = [assistant("qq")]  # a row of T predictions holds T + 1 tokens
    while len(encoder.conversation(Conversation([user("a"), *fitting])).ids) < T + 1:
        fitting[0]["content"] += "q"
    conversations = [[user("a"), *fitting], *(talk for talk in talks(60, seed=6))]
    path = write(tmp_path / "a.jsonl", [{"messages": messages} for messages in conversations])
    config = configured(path, **{"data.valid_fraction": 0.0})
    train, _, counts = prepare_examples(config, tmp_path / "run", own, "conversation")
    expected = []
    for messages in conversations:
        ids, trained = (np.asarray(x)[: T + 1] for x in spelled(own, messages))
        places = np.flatnonzero(trained)
        expected += zip(ids[places - 1].tolist(), ids[places].tolist(), places.tolist())
    batches = ExampleBatches(train, kind="conversation", lengths=[T], batch_size=4, shuffle=False)
    found = []
    for n in range(batches.num_batches):
        batch = batches.batch(n)
        where = batch["weights"] > 0
        found += zip(*(batch[name][where].tolist() for name in ("tokens", "targets")), (batch["positions"][where] + 1).tolist())
    assert sorted(found) == sorted(expected) and len(found) == counts["train"]["trained_tokens"]


def test_examples_left_without_a_trained_token_are_dropped_and_counted(own, tmp_path):
    long, short = " ".join(WORDS * 8), "so"
    rows = [{"prompt": short, "chosen": "b", "rejected": "c"}] * 3 + [{"prompt": long, "chosen": "b", "rejected": "c"}] * 2
    rows += [{"prompt": short, "chosen": f"{long} b", "rejected": f"{long} c"}]
    path = write(tmp_path / "a.jsonl", rows)
    config = configured(path, **{"data.valid_fraction": 0.0})
    train, valid, counts = prepare_examples(config, tmp_path / "run", own, "pair")
    assert valid is None and "valid" not in counts and len(train["ends"]) == counts["train"]["examples"] == 3
    assert counts["train"]["dropped"] == {
        "the prompt fills sequence_length": 2,
        "chosen and rejected differ only beyond sequence_length": 1,
    }
    write(path, rows[3:5])
    for kind in ("pair", "labelled", "conversation"):
        with pytest.raises(UserError, match="no example is left to train on.*sequence_length=48") as error:
            prepare_examples(config, tmp_path / f"none_{kind}", own, kind)
        assert "for the prompt fills" in str(error.value)
        assert not [p for p in (tmp_path / f"none_{kind}").rglob("*") if p.is_file()]


def test_steps_end_where_their_labels_stand(own, tmp_path):
    steps = ["add one", "it is two", " ".join(WORDS * 4)]
    path = write(tmp_path / "a.jsonl", [{"prompt": "1 + 1", "completions": steps, "labels": [True, False, True]}])
    config = configured(path, **{"data.valid_fraction": 0.0})
    train, _, counts = prepare_examples(config, tmp_path / "run", own, "steps")
    ids = Encoder(own).prompt_ids([user("1 + 1")])
    places, labels = [], np.flatnonzero(train["labels"]).tolist()
    for step in steps[:2]:  # the third ends beyond the row
        ids += own.encode(step + "\n")
        places.append(len(ids) - 1)
    assert train["tokens"].tolist() == ids and np.flatnonzero(train["trained"]).tolist() == places and labels == places[:1]
    assert counts["train"]["trained_tokens"] == 2 and counts["train"]["truncated"] == 1


@pytest.mark.parametrize("kind", ["conversation", "pair", "labelled"])
def test_what_stands_is_reused_and_what_was_left_behind_is_swept_away(own, tmp_path, kind):
    rows = [{"prompt": f"{n} of them", "chosen": f"b {n}", "rejected": "c"} for n in range(30)]
    path = write(tmp_path / "a.jsonl", rows)
    first = prepare_examples(configured(path), tmp_path / "run", own, kind)
    [folder] = (tmp_path / "run/data").iterdir()
    again = prepare_examples(configured(path), tmp_path / "other", own, kind)
    path.unlink()  # no longer read
    torn = folder.with_name(f".{folder.name}.incomplete")
    resumed = prepare_examples(configured(path), tmp_path / "run", own, kind)
    for other in (again, resumed):
        assert other.counts == first.counts == json.loads((folder / "counts.json").read_text())
        for one, two in ((first.train, other.train), (first.valid, other.valid)):
            assert one.keys() == two.keys()
            assert all(isinstance(two[name], np.memmap) and (one[name] == two[name]).all() for name in one)
    # A run that was killed while it wrote leaves a folder beside.
    folder.rename(torn)
    (torn / "counts.json").unlink()
    write(path, rows)
    prepare_examples(configured(path), tmp_path / "run", own, kind)
    assert [p.name for p in (tmp_path / "run/data").iterdir()] == [folder.name]
    # Another setting is another folder.
    template = tmp_path / "t.jinja"
    template.write_text(CHAT_TEMPLATE + "{{ '' }}")
    for changes in ({"chat_template": str(template)}, {"sequence_length": T + 1}, {"data.max_examples": 9}, {"seed": 1}):
        prepare_examples(configured(path, **changes), tmp_path / "run", own, kind)
    assert len(list((tmp_path / "run/data").iterdir())) == 5


def test_limits_and_splits(own, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": f"{n} of them", "completion": f"b {n}"} for n in range(200)])

    def prepared(**changes):
        return prepare_examples(configured(path, **changes), tmp_path / "run", own, "conversation").counts

    held_out = prepared()["valid"]["examples"]
    assert 5 < held_out < 40 and prepared()["train"]["examples"] == 200 - held_out
    few = prepared(**{"data.max_valid_examples": 3, "data.max_examples": 50})
    assert few["valid"]["examples"] == 3 and few["train"]["examples"] == 50
    # What is too much to validate with is trained on; where chance holds nothing out, one is.
    assert prepared(**{"data.max_valid_examples": 3})["train"]["examples"] == 197
    assert prepared(**{"data.valid_fraction": 1e-9})["valid"]["examples"] == 1
    for fraction, part in ((1.0, r"not in \[0, 1\)"), (1 - 1e-12, "no example for training")):
        with pytest.raises(UserError, match=f"data.valid_fraction.*{part}"):
            prepared(**{"data.valid_fraction": fraction})
    write(path, [{"prompt": "one", "completion": f"b {n}"} for n in range(3)])
    with pytest.raises(UserError, match="cannot be split"):
        prepared(seed=7)
    write(path, [{"prompt": "one", "completion": ""}])
    with pytest.raises(UserError, match="no example of kind conversation .dropped: 1 for no answer"):
        prepared(seed=8)
    with pytest.raises(UserError, match="data.input is not set"):
        prepared(**{"data.input": ""})


def test_a_template_that_refuses_some_conversations_is_counted_and_one_that_refuses_all_is_an_error(own, tmp_path):
    template = tmp_path / "t.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(refusal + CHAT_TEMPLATE)
    plain, ruled = {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "system": "s"}
    changes = {"chat_template": str(template), "data.valid_fraction": 0.0}
    path = write(tmp_path / "a.jsonl", [plain, ruled, plain])
    counts = prepare_examples(configured(path, **changes), tmp_path / "run", own, "conversation").counts
    assert counts["train"]["examples"] == 2 and list(counts["train"]["dropped"].values()) == [1]
    path = write(tmp_path / "b.jsonl", [ruled, plain])
    with pytest.raises(UserError, match="no system role"):
        prepare_examples(configured(path, **changes), tmp_path / "run", own, "conversation")
    with pytest.raises(UserError, match="chat_template: cannot read .*nowhere"):
        prepare_examples(configured(path, chat_template="nowhere.jinja"), tmp_path / "run", own, "conversation")


def test_tasks_have_their_prompts_encoded_and_long_ones_are_dropped(own, tmp_path):
    rows = [{"prompt": f"{n}?", "answer": str(n)} for n in range(30)] + [{"prompt": " ".join(WORDS), "answer": "x"}]
    path = write(tmp_path / "a.jsonl", rows)
    train, valid, counts = prepare_tasks(configured(path, **{"data.valid_fraction": 0.3}), own)
    assert len(train) + len(valid) == 30 and valid and counts["train"]["examples"] == len(train)
    assert sum(sum(counts[split]["dropped"].values()) for split in ("train", "valid")) == 1
    for task in train + valid:
        assert task["prompt"] == [user(f"{task['answer']}?")] and task["prompt_ids"] == Encoder(own).prompt_ids(task["prompt"])
    tools = [{"name": "f"}]
    with_tools, *_ = prepare_tasks(configured(path, **{"rollout.max_prompt_tokens": 400}), own, tools)
    assert with_tools[0]["prompt_ids"] == Encoder(own).prompt_ids(with_tools[0]["prompt"], tools)
    with pytest.raises(UserError, match="rollout.max_prompt_tokens=2"):
        prepare_tasks(configured(path, **{"rollout.max_prompt_tokens": 2}), own)


def test_endless_tasks_come_to_an_end(own, tmp_path):
    changes = {"data.max_examples": 70, "data.max_valid_examples": 11, "rollout.max_prompt_tokens": 90}
    train, valid, _ = prepare_tasks(configured("builtin:arithmetic", **changes), own)
    assert len(train) == 70 and len(valid) == 11
    counts = prepare_examples(configured("builtin:arithmetic", **changes), tmp_path, own, "pair").counts
    assert counts["train"]["examples"] == 70 and counts["valid"]["examples"] == 11
