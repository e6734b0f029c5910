"""The folder of a tiny Idefics3 with random weights, its tokenizer, its processor, and what transformers answers with it."""

import functools
from pathlib import Path

import numpy as np
from tokenizers import AddedToken

from tests.data.chat import hf_examples
from tests.lm.convert.multimodal_peers import TEXT, randomized

SIDE, EDGE, TOKENS = 16, 32, 4  # pixels of a tile, of the longer edge of an image; tokens of a tile
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{{': '}}{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PROCESSOR = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": EDGE},
    "max_image_size": {"longest_edge": SIDE},
    "do_image_splitting": True,
    "resample": 1,
}


def save_vision_model(folder: Path) -> Path:
    import transformers

    tokenizer = hf_examples.gpt2()
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)]
    tokens = ["<fake_token_around_image>", "<image>", "<global-img>", *rows]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    names = hf_examples.BYTE_LEVEL_NAMES | {"chat_template": TEMPLATE}
    hf_examples.folder(folder, tokenizer, tokenizer_config=names, preprocessor_config=PROCESSOR)
    vision = dict(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=4
    )
    text = {**TEXT, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 256}
    image = tokenizer.token_to_id("<image>")
    config = transformers.Idefics3Config(text_config=text, vision_config=vision, image_token_id=image, scale_factor=2)
    model = transformers.Idefics3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    randomized(model.float().eval()).save_pretrained(folder)
    return folder


@functools.cache
def _peer(folder: Path):
    import torch
    import transformers
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    torch.set_num_threads(1)
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    images = Idefics3ImageProcessorPil(size={"longest_edge": EDGE}, max_image_size={"longest_edge": SIDE})
    model = transformers.Idefics3ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    return model, fast, Idefics3Processor(images, fast, image_seq_len=TOKENS, chat_template=TEMPLATE)


def greedy_answer(folder: Path, messages: list[dict], images: list[np.ndarray], count: int) -> str:
    """Return what transformers generates. messages: with parts {"type": "image"}. images: theirs, uint8 [H, W, 3]."""
    import torch

    model, fast, processor = _peer(folder)
    asked = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=asked, images=[images] if images else None, return_tensors="pt")
    end = fast.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=end, pad_token_id=end)
    return fast.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
