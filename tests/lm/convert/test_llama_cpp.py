"""llama.cpp computes what we compute of our GGUF files, and cuts texts as we do. Slow: a server starts for each file."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import train
from lm.convert.to_gguf import to_gguf
from lm.infer.load import load, load_model
from tests.data.chat import hf_examples
from tests.data.text.test_sentencepiece_tokenizer import corpus
from tests.lm.convert import gguf_models, llama_cpp

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.slow

LENGTHS = (1, 2, 5, 12, 31, 47, 70)  # beyond windows (12) and original contexts (32)
TEXTS = (
    "Hello world, it's 2024!",
    "  two spaces,\ttabs\n\n and\r\n  lines  ",
    "Größe 日本語 🙂 don't DON'T 12345 3.14",
    "def f(x):\n    return x ** 2  # ½",
)


def asked(prompt) -> dict:
    """Return a request for the next token's probabilities; an "a" is forced, because half a character would have none."""
    return {"prompt": prompt, "n_predict": 1, "logit_bias": [["a", 1000.0]]}


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train(corpus(), path, vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)
    return path


@pytest.mark.parametrize("name", gguf_models.MODELS)
def test_the_next_token_has_the_same_probabilities(tmp_path, sentencepiece, name):
    gguf_models.written(tmp_path / "run", name)
    shutil.copy(sentencepiece, tmp_path / "run")
    to_gguf(tmp_path / "run", tmp_path / "x.gguf")
    model = load_model(tmp_path / "x.gguf")
    rng = np.random.default_rng(3)
    prompts = [rng.integers(16, 300, n).tolist() for n in LENGTHS]
    if model.config.rope.scaling == "longrope":  # llama.cpp takes the factors of the context that the user asks for, 512
        prompts = [prompt for prompt in prompts if len(prompt) > model.config.rope.original_positions]
    for prompt, answer in zip(prompts, llama_cpp.answers(tmp_path / "x.gguf", [asked(prompt) for prompt in prompts])):
        expected = np.asarray(jax.nn.log_softmax(model(jnp.asarray([prompt]))[0, -1]))
        found = np.asarray([answer["logprobs"][str(i)] for i in range(300)])
        np.testing.assert_allclose(np.maximum(found, -50), np.maximum(expected, -50), atol=2e-3)


def published(folder, tokenizer, **settings):
    """Return the folder of a Hugging Face tokenizer with these settings."""
    return HFTokenizer(hf_examples.folder(folder, tokenizer, tokenizer_config=settings))


TOKENIZERS = ("ours", "gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-v3", "llama 2", "gemma")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_are_cut_in_the_same_way(tmp_path, sentencepiece, name):
    """A text as prompt gives the same probabilities as the ids that we make of it."""
    run = tmp_path / "run"
    if name == "ours":
        size = 300
    else:
        tokenizer = hf_examples.pre_tokenized(name)
        size = tokenizer.get_vocab_size()
    gguf_models.written(run, "llama-tied", vocab_size=size)
    if name == "ours":
        shutil.copy(sentencepiece, run)
    else:
        published(tmp_path, tokenizer, **hf_examples.NAMED.get(name, hf_examples.BYTE_LEVEL_NAMES)).save(run)
    to_gguf(run, tmp_path / "x.gguf")
    _, tokenizer = load(tmp_path / "x.gguf")
    requests = [asked(prompt) for text in TEXTS for prompt in (text, load(run)[1].prompt_ids(text))]
    found = llama_cpp.answers(tmp_path / "x.gguf", requests)
    for text, one, other in zip(TEXTS, found[::2], found[1::2]):
        assert one == other, text
        assert tokenizer.prompt_ids(text) == load(run)[1].prompt_ids(text)
