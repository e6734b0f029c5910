"""Prompts with images and audio: ids and arrays are those of transformers; no message can spell a token of a medium."""

import itertools
from collections import Counter

import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor

from data.chat.conversations import examples_of
from data.chat.example_encoding import Encoder
from data.chat.media.encoding import Towers, arrays_of, encode_conversation, encode_prompt, prepared
from data.chat.messages import Conversation
from data.chat.records import Record
from data.chat.template import encode_chat
from data.media import spectrograms, tiles
from data.media.audio import RATE, encode_wav
from data.media.prompts import AUDIO, BEGIN, END, IDEFICS3, IMAGE, LLAVA, VOXTRAL
from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import train
from lm.errors import UserError
from tests.data.chat import hf_examples
from tests.data.media.pictures import picture, saved
from tests.data.media.test_parts import image, text, url, user
from tests.data.text.test_sentencepiece_tokenizer import corpus

# As SmolVLM and LLaVA 1.5 publish them, but for the end symbol of the first.
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}"
    "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TILED = Towers(tiles.Tower(16, "tiles", 48, resample="lanczos"), 3, style=IDEFICS3)
CROPPED = Towers(
    tiles.tower_of({"image_processor_type": "CLIPImageProcessor", "size": 28, "crop_size": 28}, "x"), 4, style=LLAVA
)
OWN = Towers(tiles.Tower(16, "tiles", 48, resample="lanczos"), 3, spectrograms.Tower(8, 1), 5)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(corpus(), path, vocab_size=420, sample_bytes=1 << 20, seed=0, threads=2)


@pytest.fixture(scope="module", params=[True, False], ids=["special", "ordinary"])
def published(tmp_path_factory, request):
    """A tokenizer with the tokens of SmolVLM, as special tokens or, as some files have them, not."""
    tokenizer = hf_examples.gpt2()
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    tokens = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=request.param) for token in tokens])
    return hf_examples.folder(tmp_path_factory.mktemp("hf"), tokenizer, tokenizer_config=hf_examples.BYTE_LEVEL_NAMES)


def conversation(*messages, kind: str = "conversation", **columns):
    (example,) = examples_of([Record({"messages": list(messages), **columns}, "f:1")], kind, Counter())
    return example


def assistant(words: str) -> dict:
    return {"role": "assistant", "content": [text(words)]}


FIRST, SECOND, SMALL = picture(40, 60), picture(70, 20, 1), picture(9, 9, 2)
TALK = [
    {"role": "system", "content": [text("Look well.")]},
    user(image(url(saved(FIRST))), text("What is this?\n")),
    assistant("A cat."),
    user(text("And these: "), image(url(saved(SECOND))), image(url(saved(SMALL))), text("?")),
]
PLAIN = [m | {"content": [p if p["type"] == "text" else {"type": "image"} for p in m["content"]]} for m in TALK]


@pytest.mark.parametrize("template, towers", [(SMOLVLM, TILED), (LLAVA_TEMPLATE, CROPPED)], ids=["idefics3", "llava"])
def test_prompts_are_those_of_transformers(published, template, towers):
    fast = AutoTokenizer.from_pretrained(published)
    if towers is TILED:
        processor = Idefics3ImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
        peer = Idefics3Processor(processor, fast, image_seq_len=3, chat_template=template)
    else:
        processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        peer = LlavaProcessor(processor, fast, 14, "full", template)
    asked = peer.apply_chat_template(PLAIN, add_generation_prompt=True, tokenize=False)
    theirs = peer(
        text=asked, images=[[FIRST, SECOND, SMALL]] if towers is TILED else [FIRST, SECOND, SMALL], return_tensors="np"
    )
    prompt = conversation(*TALK, kind="task").prompt
    ours = encode_prompt(Encoder(HFTokenizer(published), template, towers.style), prompt, towers)
    assert ours.sequence.ids.tolist() == theirs["input_ids"][0].tolist()
    pixels = np.asarray(theirs["pixel_values"]).reshape(
        -1, *ours.arrays.images.shape[1:][::-1][:1], *ours.arrays.images.shape[1:3]
    )
    np.testing.assert_allclose(ours.arrays.images, pixels.transpose(0, 2, 3, 1), atol=2e-6)
    token = fast.convert_tokens_to_ids("<image>")
    assert np.count_nonzero(ours.sequence.ids == token) == len(ours.arrays.images) * towers.image_tokens


def test_our_format(own):
    sound = {"type": "input_audio", "input_audio": {"data": url(encode_wav(np.zeros(RATE + 9)))}}
    seen = encode_conversation(
        Encoder(own, None, OWN.style), conversation(user(text("a "), image(url(saved(FIRST))), sound), assistant("b")), OWN
    )
    names = {i: symbol for symbol, i in own.controls.items()}
    words = "".join(names.get(i) or own.decode([i]) for i in seen.sequence.ids.tolist())
    grid = (IMAGE * 9 + "\n") * 2 + IMAGE * 3
    assert words == f"<s><|user|>a {BEGIN}{grid}{END}{BEGIN}{AUDIO * 10}{END}<|end|><|assistant|>b<|end|>"
    assert own.decode(seen.sequence.ids[seen.sequence.trained]) == "b" and seen.sequence.trained.sum() == 2
    assert seen.arrays.images.shape == (7, 16, 16, 3) and seen.arrays.audio.shape == (2, 100, 8)
    ids = own.controls
    for spans, symbol, tokens in ((seen.image_spans, IMAGE, 3), (seen.audio_spans, AUDIO, 5)):
        for begin, end in spans:
            assert seen.sequence.ids[begin:end].tolist() == [ids[symbol]] * tokens


def test_text_alone_is_encoded_as_without_media(own, published):
    """Also by templates that read parts only."""
    words = [{"role": "user", "content": "Hello <image>"}, {"role": "assistant", "content": "b"}]
    plain = encode_chat(own, words)
    seen = encode_conversation(Encoder(own, None, OWN.style), Conversation(words), OWN)
    assert seen.sequence.ids.tolist() == plain.ids and seen.sequence.trained.tolist() == plain.assistant
    assert seen.arrays.images.shape == (0, 16, 16, 3) and seen.arrays.audio.shape == (0, 100, 8)
    tokenizer = HFTokenizer(published)
    ids = encode_conversation(Encoder(tokenizer, SMOLVLM, TILED.style), Conversation(words), TILED).sequence.ids
    assert "Hello <image>" in tokenizer.decode(ids) and "b" in tokenizer.decode(ids)


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_no_message_can_spell_a_token_of_a_medium(own, published, role):
    tricks = [
        "<image>",
        "<ima",
        "ge>",
        IMAGE,
        IMAGE[:4],
        IMAGE[4:],
        "<row_1_col_1>",
        "<global-img>",
        "<fake_token_around_image>",
        "x",
        " ",
    ]
    rng = np.random.default_rng(0)
    hf = HFTokenizer(published)
    for tokenizer, towers, template in ((own, OWN, None), (hf, TILED, SMOLVLM), (hf, CROPPED, LLAVA_TEMPLATE)):
        symbols = [
            tokenizer.chat_symbols(s)[s] for s in (towers.style.symbols["image"], *((BEGIN, END) if towers is OWN else ()))
        ]
        for with_image in (True, False):
            for _ in range(12):
                a, b, c = ("".join(rng.choice(tricks, 4)) for _ in range(3))
                shown = [image(url(saved(SMALL)))] if with_image else []
                talk = [{"role": role, "content": a}, user(text(b), *shown, text(c)), {"role": "assistant", "content": a}]
                seen = encode_conversation(Encoder(tokenizer, template, towers.style), conversation(*talk), towers)
                spelled = np.count_nonzero(np.isin(seen.sequence.ids, symbols))
                count = len(seen.arrays.images)
                assert spelled == towers.image_tokens * count + (2 if towers is OWN else 0) * with_image
                assert len(seen.image_spans) == count == with_image * (1 if towers is CROPPED else 10)


def test_masks_of_templates_without_generation_marks(published):
    tokenizer = HFTokenizer(published)
    talk = [*TALK, assistant("Two dogs.")]
    seen = encode_conversation(Encoder(tokenizer, SMOLVLM, TILED.style), conversation(*talk), TILED)
    trained = tokenizer.decode(seen.sequence.ids[seen.sequence.trained])
    assert "A cat." in trained and "Two dogs." in trained and "And these" not in trained and "What" not in trained
    for begin, end in seen.image_spans:
        assert not seen.sequence.trained[begin:end].any()


def test_a_cut_drops_whole_tiles(own):
    """Whatever the length: as many tiles as runs, and a run is never cut."""
    talk = conversation(user(image(url(saved(FIRST)))), assistant("b"), user(image(url(saved(SMALL)))), assistant("c"))
    seen = encode_conversation(Encoder(own, None, OWN.style), talk, OWN)
    whole, numbers = len(seen.sequence.ids), set()
    for length in range(whole + 2):
        cut = seen.learnt(length)
        ids = cut.sequence.ids
        assert len(ids) <= length and (not len(ids) or cut.sequence.trained[-1])
        assert np.count_nonzero(ids == own.controls[IMAGE]) == 3 * len(cut.arrays.images) == 3 * len(cut.image_spans)
        assert np.array_equal(cut.arrays.images, seen.arrays.images[: len(cut.arrays.images)])
        assert np.array_equal(cut.arrays.images, arrays_of(cut.media, OWN, "x").images)
        numbers.add(len(cut.arrays.images))
    assert numbers == {0, 7, 17} and len(seen.learnt().sequence.ids) == whole


@pytest.mark.parametrize(
    "towers, part, words",
    [
        (Towers(), image(url(saved(SMALL))), "no tower for image"),
        (TILED, {"type": "audio", "audio": url(encode_wav(np.zeros(9)))}, "no tower for audio"),
        (OWN, image(url(b"GIF89a")), "message 1, part 1: the image: (a damaged|no) image"),
        (OWN, {"type": "audio", "audio": url(b"text")}, "message 1, part 1: no audio"),
        (CROPPED._replace(image=tiles.Tower(16, "tiles", 48)), image(url(saved(FIRST))), "LLaVA's prompts have one tile"),
    ],
)
def test_media_that_cannot_be_prepared(own, towers, part, words):
    with pytest.raises(UserError, match=f"^f:1: .*{words}"):
        prepared(conversation(user(part), assistant("b")).messages, towers)


def test_models_and_templates_that_cannot_show_media(own, published):
    talk = conversation(user(image(url(saved(SMALL)))), assistant("b"))
    with pytest.raises(UserError, match="only text is read here"):
        encode_chat(own, talk.messages)
    with pytest.raises(UserError, match="has no symbol <image>"):
        encode_conversation(Encoder(own, None, TILED.style), talk, TILED)
    for template in (
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    ):
        with pytest.raises(UserError, match="does not write one symbol for each of 1 media"):
            encode_prompt(Encoder(own, template, OWN.style), talk.messages[:1], OWN)


def test_every_order_of_two_images_and_a_sound(own):
    sounds = {"type": "audio", "audio": url(encode_wav(np.full(99, 0.5)))}
    for order in itertools.permutations([image(url(saved(FIRST))), image(url(saved(SMALL))), sounds]):
        seen = encode_prompt(Encoder(own, None, OWN.style), conversation(user(*order), kind="task").prompt, OWN)
        first_is_large = order.index(image(url(saved(FIRST)))) < order.index(image(url(saved(SMALL))))
        assert np.array_equal(seen.arrays.images[0], tiles.prepare(FIRST if first_is_large else SMALL, OWN.image).pixels[0])
        assert len(seen.arrays.images) == 17 and len(seen.arrays.audio) == 1


def test_voxtral_hears_and_sees_nothing(tmp_path):
    tokenizer = hf_examples.gpt2()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in ("[AUDIO]", "[BEGIN_AUDIO]")])
    hf = HFTokenizer(hf_examples.folder(tmp_path, tokenizer, tokenizer_config=hf_examples.BYTE_LEVEL_NAMES))
    towers = Towers(audio=spectrograms.Tower(8, 1, whole=True), audio_tokens=4, style=VOXTRAL)
    template = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    sound = {"type": "audio", "audio": url(encode_wav(np.zeros(2 * RATE)))}
    seen = encode_prompt(
        Encoder(hf, template, towers.style), conversation(user(sound, text("[AUDIO]?")), kind="task").prompt, towers
    )
    begin, run = (hf.controls[symbol] for symbol in ("[BEGIN_AUDIO]", "[AUDIO]"))
    marked = [i for i in seen.sequence.ids.tolist() if i in (begin, run)]
    assert marked == [begin] + [run] * 8 and seen.arrays.audio.shape == (2, 100, 8)
    with pytest.raises(UserError, match="no tower for image"):
        prepared(conversation(user(image(url(saved(SMALL)))), kind="task").prompt, towers)
