"""Curate text: from raw files to documents worth training on.

    python curate.py --config=configs/curate/fineweb.py --workdir=corpus --config.input='crawl/*.warc.gz'
    python train.py --config=configs/train/small.py --workdir=runs/mine --config.data.input=corpus
    python curate.py … --config.tokenizer=runs/mine     # also corpus/dataset: tokenized, which train.py takes as it is

Reads files, measures and rewrites their documents stage by stage, and applies the recipe's thresholds.
configs/curate/default.py explains every key, docs/curate.md every stage. Run the same command again to resume after a crash, a
kill or a Ctrl-C. After a change of a threshold only the last step is done anew. Writes to the workdir: documents/, dropped/
(with the reason), manifest.json, report.html, report.json, browse.html, stages/.
"""

import gc
from pathlib import Path

from lm import cli
from lm.runs.lock import locked
from lm.runs.workdir import check_record, save_record


def main(config, workdir: Path) -> None:
    from data.recipe import tokenized
    from data.recipe.run import prepare, run
    from lm.reports.curate import totals, write
    from lm.reports.next_steps import show
    from lm.train.checks import check_apart

    check_record(config, workdir)
    check_apart("input", config.input, workdir)
    tokenized.check(config.to_dict())
    prepared = prepare(config.to_dict())
    with locked(workdir):
        save_record(config, workdir)
        figures = run(config.to_dict(), workdir, prepared)
        if totals(figures["funnel"])["all"][0]:
            figures["dataset"] = tokenized.write(config.to_dict(), workdir)
        write(workdir, config, figures, prepared)
    show(workdir)
    gc.freeze()  # else Python's end looks for garbage among all that was imported, which takes 0.3 s


if __name__ == "__main__":
    with cli.command(__doc__) as arguments:
        main(*arguments)
