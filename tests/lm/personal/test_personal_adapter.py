"""The adapter of a store: a function of its items alone, resumable, forgetful, and private if asked."""

import dataclasses
import itertools
import signal

import jax
import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.personal import losses_of
from lm.adapt.rebuild import arrays_of
from lm.errors import UserError
from lm.personal import adapter, private
from lm.personal.adapter import LONGEST, Settings, rows_of, train
from lm.personal.items import exchange, note
from lm.personal.speaker import open_speaker
from tests.lm.evals import tiny_models
from tests.lm.personal.stores import made
from tests.slow import all_but

SETTINGS = Settings(epochs=2, batch=3, rank=2)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaker")
    tiny_models.published(folder)
    return open_speaker(str(folder / "workdir"))


def items(count: int) -> list:
    talk = exchange([{"role": "user", "content": "abc def"}, {"role": "assistant", "content": "ghi"}], "here")
    return [talk, *(note(tiny_models.words(4 + n, seed=n)) for n in range(count - 1))]


def trained(speaker, store, settings: Settings = SETTINGS) -> bytes:
    train(speaker, store, settings)
    return store.blob("adapter")[0]


@pytest.mark.parametrize("epsilon", all_but([0.0], [0.0, 8.0]))
def test_forgetting_an_item_is_bit_for_bit_never_having_had_it(speaker, tmp_path, monkeypatch, epsilon):
    settings = dataclasses.replace(SETTINGS, epsilon=epsilon)
    store = made(tmp_path / "home", monkeypatch)
    others = items(7)
    store.add(others)
    never = trained(speaker, store, settings)
    [gone] = store.add([note("what must be forgotten")])
    had = trained(speaker, store, settings)
    assert had != never
    assert store.forget([gone.id]) and store.blob("adapter") is None
    assert trained(speaker, store, settings) == never


def test_the_adapter_does_not_depend_on_the_store_or_on_when_items_came(speaker, tmp_path, monkeypatch):
    one, other = (made(tmp_path / name, monkeypatch) for name in ("one", "other"))
    one.add(items(6))
    for item in reversed(items(6)):
        other.add([item._replace(time=item.time + 1e6)])
    assert trained(speaker, one) == trained(speaker, other)
    assert trained(speaker, one, dataclasses.replace(SETTINGS, seed=1)) != trained(speaker, other)


def stopped(speaker, store, monkeypatch) -> None:
    """Train up to Ctrl-C in the first update, which is still made."""
    with monkeypatch.context() as pressed:
        real = adapter.updated
        pressed.setattr(adapter, "updated", lambda *a: signal.raise_signal(signal.SIGINT) or real(*a))
        with pytest.raises(KeyboardInterrupt):
            train(speaker, store, SETTINGS)


def test_a_stopped_training_resumes_to_the_same_bits(speaker, tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    store.add(items(7))
    whole = trained(speaker, store)
    store.put("other", b"", [], {}, without="adapter")
    stopped(speaker, store, monkeypatch)
    assert store.about("training")["updates"] == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert store.blob("adapter") is None
    assert trained(speaker, store) == whole and store.blob("training") is None
    assert train(speaker, store, SETTINGS).startswith("the adapter is of these items and settings already")
    store.put("other", b"", [], {}, without="adapter")
    stopped(speaker, store, monkeypatch)
    store.forget(store.ids()[:1])
    assert store.blob("training") is None


def test_what_is_forgotten_during_a_training_does_not_come_back(speaker, tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    store.add(items(3))
    real = adapter.updated
    monkeypatch.setattr(adapter, "updated", lambda *a: store.ids() and store.forget(store.ids()[:1]) or real(*a))
    with pytest.raises(UserError, match="was forgotten during the training"):
        train(speaker, store, SETTINGS)
    assert store.blob("adapter") is None


def test_training_learns_the_items_and_leaves_the_base_alone(speaker, tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    learnt = items(5)
    store.add(learnt)
    before = jax.tree.map(np.asarray, arrays_of(speaker.params))
    trained(speaker, store, dataclasses.replace(SETTINGS, epochs=20, learning_rate=1e-2))
    model = adapter.adapted(speaker, store)
    before_N, after_N = (losses_of(speaker, one, learnt) for one in (speaker.model(), model))
    assert (after_N < before_N - 0.3).all()
    alone = [losses_of(speaker, model, [item])[0] for item in learnt]
    np.testing.assert_allclose(after_N, alone, rtol=1e-5)
    after = arrays_of(speaker.params)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_gradient_is_that_of_each_item_clipped(speaker):
    """Items of several rows and of one: the update's gradient beside a plain loop over items."""
    settings = dataclasses.replace(SETTINGS, clip=0.05)
    examples = [rows_of(speaker, item) for item in [note(tiny_models.words(300, seed=1)), *items(3)]]
    assert len(examples[0]) > 1
    state = adapter.start(speaker, settings)
    # Otherwise B = 0, and the gradient of A is zero.
    state = state._replace(lora=jax.tree.map(lambda x: x + 0.01, state.lora))

    def summed(chosen, clip):
        config = dataclasses.replace(speaker.config, adapter=settings.adapter, remat="full")
        total = adapter.summed_gradient(adapter.skeleton(config)[0], state.lora, speaker.params, chosen, clip)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(total)])

    alone = [summed([rows], np.inf) for rows in examples]
    assert all(np.linalg.norm(one) > settings.clip for one in alone)
    expected = sum(one * settings.clip / np.linalg.norm(one) for one in alone)
    np.testing.assert_allclose(summed(examples, settings.clip), expected, atol=1e-6)
    np.testing.assert_allclose(summed(examples, np.inf), sum(alone), rtol=1e-4, atol=1e-5)


def test_rows_hold_every_token_once(speaker):
    item = note(tiny_models.words(400, seed=2))
    rows = rows_of(speaker, item)
    ids = [*speaker.tokenizer.prompt_ids(item.text), speaker.tokenizer.stop_ids[0]]
    assert list(itertools.chain(*(row.targets.tolist() for row in rows))) == ids[1:]
    assert list(itertools.chain(*(row.tokens.tolist() for row in rows))) == ids[:-1]
    assert max(len(row.tokens) for row in rows) == LONGEST and sum(row.weights.sum() for row in rows) == pytest.approx(1)


def test_the_noise_is_what_the_accountant_asks_for():
    sigma = private.noise_multiplier(8.0, 1e-5, 0.2, 20)
    assert 7.9 < private.spent(sigma, 1e-5, 0.2, 20) <= 8.0
    assert private.noise_multiplier(1.0, 1e-5, 0.2, 20) > 3 * sigma
    # One release of all items: the exact δ of the Gaussian mechanism (Balle and Wang 2018, theorem 8).
    sigma = private.noise_multiplier(1.0, 1e-5, 1.0, 1)
    exact = norm.cdf(0.5 / sigma - sigma) - np.e * norm.cdf(-0.5 / sigma - sigma)
    assert 1e-6 < exact <= 1e-5
    with pytest.raises(UserError, match="epsilon=1e-06 is too small"):
        private.noise_multiplier(1e-6, 1e-5, 1.0, 1000)


def test_no_attack_on_membership_has_a_larger_area():
    # One release of all items: the area is that of two normal distributions whose means differ by 1 / σ.
    for sigma in (0.7, 3.0):
        assert private.attack_bound(sigma, 1.0, 1) == pytest.approx(norm.cdf(1 / (sigma * 2**0.5)), abs=2e-4)
    alone = private.noise_multiplier(8.0, 1e-5, 0.2, 20)
    limited = private.noise_multiplier(8.0, 1e-5, 0.2, 20, attack=0.55)
    assert private.attack_bound(alone, 0.2, 20) > 0.7 and 0.545 < private.attack_bound(limited, 0.2, 20) <= 0.55
    assert private.noise_multiplier(8.0, 1e-5, 0.2, 20, attack=0.9) == alone
    with pytest.raises(UserError, match="attack=0.5001 is too small"):
        private.noise_multiplier(8.0, 1e-5, 1.0, 100, attack=0.5001)


def test_a_private_training_says_what_it_reveals(speaker, tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    store.add(items(5))
    said = train(speaker, store, dataclasses.replace(SETTINGS, epsilon=8.0))
    [spent] = store.settings["trainings"]
    assert f"epsilon {spent:.2f} at delta 1e-05" in said and 0 < spent < 2
    assert "no attack on membership above an area of 0.55" in said


def test_the_noise_depends_on_the_secret_and_on_the_items():
    def first(*arguments):
        return private.generator(*arguments).standard_normal()

    same = first(b"secret", ["a", "b"], "noise")
    assert same == first(b"secret", ["b", "a"], "noise")
    assert (
        len({same, first(b"other", ["a", "b"], "noise"), first(b"secret", ["a"], "noise"), first(b"secret", ["a", "b"], "x")})
        == 4
    )


def test_draws_are_poisson_samples_with_privacy_and_epochs_without():
    ids = [f"{n:02}" for n in range(50)]
    epochs = adapter.plan(ids, Settings(epochs=3, batch=8), b"")
    assert sorted(itertools.chain(*epochs)) == sorted(3 * list(range(50))) and epochs[0] != epochs[7]
    drawn = adapter.plan(ids, Settings(epochs=200, batch=5, epsilon=1.0), b"secret")
    sizes = np.array(list(map(len, drawn)))
    assert len(drawn) == 2000 and abs(sizes.mean() - 5) < 0.2 and abs(sizes.var() - 4.5) < 0.6


def test_mistakes(speaker, tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    with pytest.raises(UserError, match="no items to train on"):
        train(speaker, store, SETTINGS)
    store.add(items(3))
    with pytest.raises(UserError, match="--delta=0.5 must be below 1 / items"):
        train(speaker, store, dataclasses.replace(SETTINGS, epsilon=1.0, delta=0.5))
    trained(speaker, store)
    with pytest.raises(UserError, match="trained on another model"):
        adapter.adapted(speaker._replace(fingerprint="other"), store)
    for path, words in (("gs://bucket/model", "uses no network"), (str(tmp_path / "none"), "no such file or folder")):
        with pytest.raises(UserError, match=words):
            open_speaker(path)
