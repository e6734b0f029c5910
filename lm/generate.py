"""Complete a prompt with a trained model, or answer it as an assistant, token by token on the terminal.

python -m lm.generate --checkpoint=runs/demo --prompt='def ' [--max_new_tokens=64 --temperature=0.8 --top_p=0.95 --seed=0]
python -m lm.generate --checkpoint=runs/sft --chat --prompt='What is a cat?' [--system='Answer in one sentence.']
python -m lm.generate --checkpoint=runs/sft --chat --prompt='Is this a cat?' --image=cat.png [--audio=cat.wav]
"""

import sys
import warnings
from pathlib import Path

from absl import flags

import lm
from data.chat.messages import make_message
from lm import cli
from lm.errors import UserError, runnable
from lm.files import compile_cache
from lm.train.checks import check_writer
from lm.train.values import SEEDS

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A training run's workdir, a Hugging Face folder or a GGUF file; also gs://… or s3://…")
flags.DEFINE_multi_string("prompt", None, "Text to complete; may be given several times.")
flags.DEFINE_bool("chat", False, "Treat each prompt as a user message and answer it with the chat template.")
flags.DEFINE_multi_string("image", [], "With --chat: a file that each prompt shows first; may be given several times.")
flags.DEFINE_multi_string("audio", [], "With --chat: a file of sound that each prompt has; may be given several times.")
flags.DEFINE_string("system", "", "With --chat: the system message.")
flags.DEFINE_integer("max_new_tokens", 64, "Maximum number of new tokens.", lower_bound=1)
flags.DEFINE_float("temperature", 0.8, "Sampling temperature; 0: greedy.", lower_bound=0.0)
flags.DEFINE_float("top_p", 0.95, "Nucleus sampling: the smallest set of tokens with this probability.", upper_bound=1.0)
flags.DEFINE_integer("top_k", 0, "Only the k likeliest tokens; 0: all.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Seed of the sampling.", lower_bound=0, upper_bound=SEEDS)


def main() -> None:
    cli.parse_flags(sys.argv)
    for name in ("checkpoint", "prompt"):
        if FLAGS[name].value is None:
            command = runnable("python -m lm.generate --checkpoint=runs/mine --prompt='Once upon a time'")
            raise UserError(f"--{name} is missing: {command}")
    if FLAGS.top_p <= 0:
        raise UserError(f"--top_p={FLAGS.top_p} must be above 0 and at most 1")
    if FLAGS.system and not FLAGS.chat:
        raise UserError("--system is the system message of a chat: add --chat")
    if (FLAGS.image or FLAGS.audio) and not FLAGS.chat:
        raise UserError("--image and --audio stand in a message of a chat: add --chat")
    compile_cache.switch_on()
    warnings.formatwarning = lambda message, *_: f"generate.py: {message}\n"
    check_writer("--checkpoint", FLAGS.checkpoint)
    model, tokenizer = lm.load(FLAGS.checkpoint)
    if tokenizer is None:
        raise UserError(f"--checkpoint={FLAGS.checkpoint} has no tokenizer; in Python, lm.generate continues token ids")
    template = towers = None
    shown = []
    if FLAGS.chat:
        from lm.align.reward_model import chat_template_of
        from lm.convert.multimodal.processor import towers_of
        from lm.infer.prompts import parts_of, with_parts

        template = chat_template_of(FLAGS.checkpoint)
        if FLAGS.image or FLAGS.audio:
            towers = towers_of(Path(FLAGS.checkpoint), model.config, tokenizer)
            shown = parts_of({"image": FLAGS.image, "audio": FLAGS.audio}, towers)
    for prompt in FLAGS.prompt:
        print(prompt, end="\n" if FLAGS.chat else "", flush=True)
        before = [make_message("system", FLAGS.system)] if FLAGS.system else []
        asked = [*before, make_message("user", with_parts(prompt, shown))] if FLAGS.chat else prompt
        lm.generate(
            model,
            tokenizer,
            [asked],
            template=template,
            towers=towers,
            max_new_tokens=FLAGS.max_new_tokens,
            temperature=FLAGS.temperature,
            top_p=FLAGS.top_p,
            top_k=FLAGS.top_k,
            seed=FLAGS.seed,
            stream=lambda text: print(text, end="", flush=True),
        )
        print(flush=True)


if __name__ == "__main__":
    cli.run(main, __doc__)
