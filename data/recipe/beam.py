"""Spread the work of a recipe with Apache Beam: on this machine, or on Dataflow, Flink, Spark.

The units are the elements of a pipeline, and the functions are those of the local run, so the output is the same to the byte.
The workdir and the input must be on a file system that all workers see.
"""

import json
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lm.errors import UserError


def spread(folder: Path, options: str) -> Callable[[Callable, Any, Iterable[Any]], Iterator[Any]]:
    """Return map(function, state, items), which yields function(state, item) in order; its results must be JSON.

    folder: for the results of one call; it is removed afterwards. options: flags of Beam, such as "--runner=FlinkRunner".
    Raises: UserError if Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"runner=beam needs Apache Beam: pip install -r requirements/beam.txt ({error})") from error

    def mapped(function: Callable, state: Any, items: Iterable[Any]) -> Iterator[Any]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # The main session is not pickled: functions are found by their modules, which workers must have installed.
        with beam.Pipeline(options=PipelineOptions(shlex.split(options), save_main_session=False)) as pipeline:
            results = (
                pipeline
                | beam.Create(list(enumerate(items)))
                | beam.Reshuffle()
                | beam.Map(_called, function, state)
            )  # fmt: skip
            results | beam.io.WriteToText(str(folder / "results"))
        lines = [
            json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text(encoding="utf-8").splitlines()
        ]
        shutil.rmtree(folder)
        for _, result in sorted(lines, key=lambda pair: pair[0]):
            yield result

    return mapped


def _called(numbered: tuple[int, Any], function: Callable, state: Any) -> str:
    number, item = numbered
    return json.dumps([number, function(state, item)])
