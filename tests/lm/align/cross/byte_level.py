"""A byte-level BPE tokenizer, as Qwen's is, trained on the spot."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data.text.tokenizer import load_tokenizer


def byte_level(folder, texts, vocab_size: int, end: str = "<|im_end|>"):
    """A byte-level BPE tokenizer as Qwen's, trained on other texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[end], show_progress=False)
    )
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    return load_tokenizer(folder)
