"""Read back what trackers without a network hold of the run in a workdir, with their own packages.

Each function returns the parameters of the run and [(metric, step, value)].
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.verbs import runs

# trackio takes the folder from its environment when it is imported.
TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("lmcraft")
rows = [{k: v for k, v in row.items() if k != "timestamp"} for row in SQLiteStorage.get_logs("lmcraft", run.name)]
print(json.dumps({"config": run.config, "rows": rows}))
"""


def read_wandb(workdir: Path):
    from wandb.proto import wandb_internal_pb2

    from tests.wandb_files import history, records

    config, rows, ids = {}, {}, set()
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        for data in records(path):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        for row in history(path):
            rows |= {(name, row["_step"]): value for name, value in row.items() if not name.startswith("_")}
    assert ids == {json.loads((workdir / "trackers.json").read_text())["wandb"]}
    return config, [(*place, value) for place, value in rows.items()]


def read_mlflow(workdir: Path):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{workdir / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lmcraft").experiment_id])
    assert run.info.status == "FINISHED"
    rows = [(name, m.step, m.value) for name in run.data.metrics for m in client.get_metric_history(run.info.run_id, name)]
    return run.data.params, rows


def read_trackio(workdir: Path):
    variables = runs.environment(TRACKIO_DIR=str(workdir / "trackio"))
    done = subprocess.run([sys.executable, "-c", TRACKIO], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["config"], [(n, row["step"], v) for row in found["rows"] for n, v in row.items() if n != "step"]


READERS = {"wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}
