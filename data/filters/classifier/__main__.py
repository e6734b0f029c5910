"""Train a classifier that tells good documents from bad ones, for the stage `classifier` of curate.py.

    python -m data.filters.classifier --good='reference/*.jsonl.gz' --bad='crawl/*.warc.gz' --out=models/quality
    python curate.py --config=… --config.stages=…,classifier --config.classifier.model=quality=models/quality

--good and --bad name files, folders and globs of any format that curate.py reads, with commas between. Good is what a corpus
should hold: for a quality filter, texts from trusted sources against a random crawl; for a spam filter, mail against spam.

The classifier is logistic regression on hashed n-grams. Texts that occur again are used once. A hash of each text says whether
it is for training, for validation (when to stop) or for testing, so equal texts are never on two sides. Near duplicates may be:
remove them first with curate.py, or the figures look better than they are.

Prints figures on the test part, and writes them to OUT/classifier.json: area under the ROC curve, accuracy, what each threshold
keeps, and the most telling n-grams of both sides. Look at these: if they are names of sites or signatures, the
classifier has learnt where texts come from, and not how good they are.

The same files and flags give the same classifier.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from lm import cli
from lm.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("good", None, "Files of good documents.")
flags.DEFINE_string("bad", None, "Files of bad documents.")
flags.DEFINE_string("out", None, "Folder of the classifier.")
flags.DEFINE_string("text_key", "text", "Field or column of JSON lines and Parquet that holds the text.")
flags.DEFINE_string("format", None, "Format of all files, instead of looking at their names: mail, html, plain, …")
flags.DEFINE_integer("max_documents", 100_000, "Use at most so many of each side, chosen by a hash; memory holds them.", 1)
flags.DEFINE_integer("ngrams", 2, "Features are n-grams of 1 to this many words; 0: none.", 0)
flags.DEFINE_integer("characters", 0, "And n-grams of this many characters, for scripts without spaces; 0: none.", 0)
flags.DEFINE_integer("bits", 21, "Features fall into 2^bits buckets; the classifier takes 4 bytes for each.", 8, 26)
flags.DEFINE_integer("steps", 200, "Training steps at most; it stops when the validation loss no longer falls.", 1)
flags.DEFINE_float("l2", 1e-5, "Half of it times the squared weights is added to the loss.", 0.0)
flags.DEFINE_integer("min_documents", 2, "Buckets in fewer training documents get no weight.", 1)
flags.DEFINE_float("valid_fraction", 0.1, "Share of documents that decide when training stops.", 0.0, 1.0)
flags.DEFINE_float("test_fraction", 0.1, "Share of documents for the figures.", 0.0, 1.0)
flags.DEFINE_integer("seed", 0, "Seed of the split.", 0, 2**32 - 1)


def main() -> None:
    cli.parse_flags(sys.argv)
    for name in ("good", "bad", "out"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing; --help lists the flags")
    out = Path(FLAGS.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; name a folder")

    from data.filters.classifier import linear
    from data.filters.classifier.fit import Options
    from data.filters.classifier.train import distinct, read_texts, train
    from data.sources import archives

    settings = linear.Settings(FLAGS.ngrams, FLAGS.characters, FLAGS.bits)
    read = archives.Options(text_key=FLAGS.text_key, format=FLAGS.format)
    options = Options(**{name: FLAGS[name].value for name in Options._fields})
    good, bad = (
        distinct(read_texts(f"--{side}", FLAGS[side].value, read), FLAGS.max_documents, FLAGS.seed) for side in ("good", "bad")
    )
    model = train(good, bad, settings, options, fractions=(FLAGS.valid_fraction, FLAGS.test_fraction))
    files = {side: FLAGS[side].value for side in ("good", "bad")} | {"text_key": FLAGS.text_key, "format": FLAGS.format}
    linear.save(out, dataclasses.replace(model, about={"files": files, **model.about}))
    print(told(model.about))
    print(f"{out}: written; use it with --config.classifier.model={out.name}={out}")


def told(about: Mapping) -> str:
    """Return the figures for a terminal. about: that of a model made by `train`."""
    test, fit, documents = about["test"], about["fit"], about["documents"]
    parts = ", ".join(f"{documents[name]['good']} + {documents[name]['bad']} {name}" for name in ("train", "valid", "test"))
    lines = [
        f"documents (good + bad): {parts}; left out because they are on both sides: {documents['in_both']}",
        f"best after {fit['best_step']} of {fit['steps']} steps: validation loss {fit['valid_loss']:.4f}; "
        f"{fit['buckets']:,} buckets have a weight",
        "",
        f"test: AUC {test['auc']:.4f} ± {test['auc_error']:.4f} (standard error), accuracy {test['accuracy']:.4f}",
        "",
        "drop below  good kept  bad kept  precision",
    ]
    for row in test["thresholds"]:
        precision = "        –" if row["precision"] is None else f"{row['precision']:9.4f}"
        lines.append(f"{row['threshold']:10.2f}  {row['good_kept']:9.4f}  {row['bad_kept']:8.4f}  {precision}")
    for side, some in about["telling"].items():
        lines += ["", f"most telling of {side}: " + ", ".join(f"{one['ngram'][:40]!r} {one['weight']:+.1f}" for one in some)]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, __doc__)
