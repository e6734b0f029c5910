"""Complete a prompt with a trained model, token by token on the terminal.

python -m lm.generate --checkpoint=runs/demo --prompt='def ' [--max_new_tokens=64 --temperature=0.8 --top_p=0.95 --seed=0]
"""

import sys

from absl import app, flags

import lm
from lm.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A training run's workdir.", required=True)
flags.DEFINE_multi_string("prompt", None, "Text to go on from; may be given several times.", required=True)
flags.DEFINE_integer("max_new_tokens", 64, "Most tokens to draw.", lower_bound=1)
flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token.", lower_bound=0.0)
flags.DEFINE_float("top_p", 0.95, "Nucleus sampling: the smallest set of tokens with this probability.")
flags.DEFINE_integer("top_k", 0, "Only the k likeliest tokens; 0: all.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Of the draws.")


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        model, tokenizer = lm.load(FLAGS.checkpoint)
        for prompt in FLAGS.prompt:
            print(prompt, end="", flush=True)
            lm.generate(
                model, tokenizer, [prompt], max_new_tokens=FLAGS.max_new_tokens, temperature=FLAGS.temperature,
                top_p=FLAGS.top_p, top_k=FLAGS.top_k, seed=FLAGS.seed, stream=lambda text: print(text, end="", flush=True),
            )  # fmt: skip
            print(flush=True)
    except UserError as error:
        print(f"lm.generate: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
