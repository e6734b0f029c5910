"""Merge models that were trained from one base into one model, without training.

    python -m lm.merge --method=linear --models=A,B --workdir=DIR [--weights=0.7,0.3]
    python -m lm.merge --method=slerp --models=A,B --t=0.3 --workdir=DIR
    python -m lm.merge --method=task_arithmetic --base=BASE --models=A,B --weights=1,-0.5 --workdir=DIR [--scale=0.8]
    python -m lm.merge --method=ties --base=BASE --models=A,B,C --density=0.2 --workdir=DIR
    python -m lm.merge --method=dare_ties --base=BASE --models=A,B --density=0.1 --workdir=DIR [--seed=0]

A model is a workdir, a Hugging Face folder or a GGUF file. All must have the same shapes and the same tokenizer; an adapter is
merged into its base first. linear is a weighted mean, and slerp a mean along an arc. The others add what training changed: a
negative weight takes away. ties keeps the largest changes and, of each number, those of the elected sign; dare keeps a random
share (docs/adapt.md). The result is a workdir at step 0, with the tokenizer of the base or of the first model, for lm.generate,
evaluate.py, --config.init_from and lm.convert export. All models must fit the memory at once.
"""

import sys
from pathlib import Path

from absl import flags

from lm import cli
from lm.bucket.copies import local
from lm.errors import UserError, no_model
from lm.files import compile_cache

FLAGS = flags.FLAGS
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def define_flags() -> None:
    flags.DEFINE_enum("method", None, METHODS, "How models are merged.")
    flags.DEFINE_list("models", None, "The models, with commas between them.")
    flags.DEFINE_string("base", None, "The model from which they were trained; linear and slerp take none.")
    flags.DEFINE_string("workdir", None, "A new folder.")
    flags.DEFINE_list("weights", None, "A number for each model; none: 1 for all. linear and ties divide by their sum.")
    flags.DEFINE_float("density", 1.0, "ties, dare: the share of each tensor's changes that stay.", 0.0, 1.0)
    flags.DEFINE_float("scale", 1.0, "Multiplies the merged change before the base is added: lambda.")
    flags.DEFINE_float("t", 0.5, "slerp: 0 is the first model, 1 the second.", 0.0, 1.0)
    flags.DEFINE_bool("normalize", None, "Divide by the sum of the weights; none: linear and ties do.")
    flags.DEFINE_integer("seed", 0, "dare: of the random choice.", lower_bound=0)
    flags.DEFINE_string("mesh", "fsdp=-1", "Mesh axes to shard over, such as fsdp=4,tensor=2; -1: the remaining devices.")


def main() -> None:
    cli.parse_flags(sys.argv)
    for name in ("method", "models", "workdir"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing; --help shows examples")
    _refuse_unused()
    try:
        weights = tuple(map(float, FLAGS.weights or [1.0] * len(FLAGS.models)))
    except ValueError:
        raise UserError(f"--weights={','.join(FLAGS.weights)}: each must be a number") from None
    compile_cache.switch_on()
    from lm.adapt.merging import Recipe
    from lm.convert.to_workdir import merged_to_workdir
    from lm.parallel.mesh import make_mesh, mesh_sizes

    recipe = Recipe(FLAGS.method, weights, FLAGS.density, FLAGS.scale, FLAGS.t, FLAGS.normalize, FLAGS.seed)
    models, base = [_model(path) for path in FLAGS.models], _model(FLAGS.base) if FLAGS.base else None
    workdir = Path(FLAGS.workdir).absolute()
    merged_to_workdir(models, base, workdir, recipe, make_mesh(mesh_sizes(FLAGS.mesh)))
    print(f"{len(models)} models were merged into {workdir}")


def _model(named: str) -> Path:
    """Return the path of a model, whose copy is fetched if it lies in a bucket. Raises: UserError: nothing is there."""
    path = Path(local(named))
    if not path.exists():
        raise UserError(no_model(named))
    return path.absolute()


def _refuse_unused() -> None:
    """Raise UserError for a flag that means nothing to the method."""
    takes = {"density": ("ties", "dare_linear", "dare_ties"), "t": ("slerp",), "seed": ("dare_linear", "dare_ties")}
    takes |= dict.fromkeys(("scale", "base"), METHODS[2:])
    takes |= dict.fromkeys(("weights", "normalize"), tuple(method for method in METHODS if method != "slerp"))
    for name, methods in takes.items():
        if FLAGS[name].present and FLAGS.method not in methods:
            raise UserError(f"--{name} means nothing to {FLAGS.method}: it is for {', '.join(methods)}")


if __name__ == "__main__":
    define_flags()
    cli.run(main, __doc__)
