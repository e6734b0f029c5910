"""The tokenizer of an alignment run."""

from pathlib import Path

from data.text.fingerprints import check_tokenizer
from data.text.hf_tokenizer import BASE_TEMPLATE, has_tokenizer
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.errors import UserError
from lm.parallel import hosts


def own_tokenizer(config, workdir: Path) -> Tokenizer:
    """Load the tokenizer of `workdir`, or that of config.tokenizer if `workdir` has none.

    Raises UserError if it has more ids than the model.
    """
    tokenizer = load_tokenizer(workdir if hosts.from_first(lambda: has_tokenizer(workdir)) else config.tokenizer)
    check_tokenizer(workdir, tokenizer.fingerprint)
    tokenizer = templated(config, tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"tokenizer: the tokenizer of {config.tokenizer} has {tokenizer.vocab_size} ids, more than "
            f"model.vocab_size={config.model.vocab_size} of {config.init_from}"
        )
    return tokenizer


def templated(config, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, with the chat template for base models if it has none and the config names none."""
    if config.chat_template or tokenizer.chat_template is not None:
        return tokenizer
    if hosts.is_first():
        print(
            f'the tokenizer of {config.tokenizer} has no chat template: messages are written as "User:" and "Assistant:" '
            "(data/text/base_chat_template.jinja); set chat_template to a Jinja file for another one",
            flush=True,
        )
    return tokenizer.with_chat_template(BASE_TEMPLATE)
