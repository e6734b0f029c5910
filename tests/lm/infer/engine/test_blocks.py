"""Blocks: sharing by content, and which are given away first."""

import random

import pytest

from lm.infer.engine.sequence import Blocks, chain
from lm.infer.engine.snapshots import Snapshots


def hashes(tokens, salt=b""):
    return chain(tokens, 4, salt)


def test_a_known_prefix_is_found_and_shared():
    blocks = Blocks(8, 4)
    tokens = list(range(10))
    mine = [blocks.take() for _ in range(3)]
    for block, hash in zip(mine, hashes(tokens)):
        blocks.seal(block, hash)
    assert blocks.find(hashes([*tokens[:9], 99])) == mine[:2]
    assert blocks.find(hashes([0, 1, 2, 99, 4, 5, 6, 7])) == []
    assert blocks.find(hashes(tokens, b"another adapter")) == []
    assert blocks.used == 3
    blocks.release(mine)
    assert blocks.used == 2
    blocks.release(mine[:2])
    assert blocks.used == 0 and blocks.available == 8
    assert blocks.find(hashes(tokens)) == mine[:2]  # unused, and still known


def test_the_longest_unused_block_is_given_away_first_and_the_end_of_a_sequence_before_its_beginning():
    blocks = Blocks(4, 4)
    first, second = [blocks.take(), blocks.take()], [blocks.take(), blocks.take()]
    for some, base in ((first, 0), (second, 100)):
        for block, hash in zip(some, hashes(range(base, base + 8))):
            blocks.seal(block, hash)
    blocks.release(first)
    blocks.release(second)
    assert [blocks.take() for _ in range(3)] == [first[1], first[0], second[1]]
    assert blocks.find(hashes(range(100, 108))) == second[:1] and blocks.find(hashes(range(8))) == []
    with pytest.raises(IndexError):
        blocks.take()


def test_counts_hold_whatever_happens():
    rng, blocks, held = random.Random(0), Blocks(16, 4), []
    for _ in range(3000):
        if rng.random() < 0.5 and blocks.available >= 4:
            tokens = [rng.randrange(2) for _ in range(12)]
            found = blocks.find(hashes(tokens))
            found += [blocks.take() for _ in range(3 - len(found))]
            for block, hash in zip(found, hashes(tokens)):
                blocks.seal(block, hash)
            held.append(found)
        elif held:
            blocks.release(held.pop(rng.randrange(len(held))))
        users = {block for some in held for block in some}
        assert blocks.used == len(users) and blocks.available == 16 - len(users)
        if rng.random() < 0.01:
            blocks.forget()
    for some in held:
        blocks.release(some)
    assert blocks.available == 16


def test_a_chain_goes_on_from_what_is_known():
    tokens = list(range(100))
    whole = hashes(tokens)
    assert len(whole) == 25 and chain(tokens, 4, b"", whole[:10]) == whole[10:]
    assert len(set(hashes(tokens, b"a") + whole)) == 50


def test_a_slot_of_a_snapshot_is_free_when_neither_a_block_nor_a_sequence_uses_it():
    rng, snapshots, held, names = random.Random(0), Snapshots(range(4, 10)), [], [bytes([n]) for n in range(12)]
    for _ in range(3000):
        draw, name = rng.random(), rng.choice(names)
        if draw < 0.4:
            slot = snapshots.take()
            assert (slot is None) == (len(set(held)) == 6) and slot not in held
            if slot is not None:
                held.append(slot)
                if snapshots.keep(name, slot):
                    assert snapshots.find([name, b"none"]) == (1, slot)
                    snapshots.release(slot)
        elif draw < 0.6:
            found = snapshots.find([name])
            held += [found[1]] if found[0] else []
        elif draw < 0.7:
            snapshots.drop(name)
        elif held:
            snapshots.release(held.pop(rng.randrange(len(held))))
    for slot in held:
        snapshots.release(slot)
    for name in names:
        snapshots.drop(name)
    assert {snapshots.take() for _ in range(6)} == {*range(4, 10)} and snapshots.take() is None
