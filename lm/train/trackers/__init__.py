"""Send the metrics of a run to Weights & Biases, MLflow or trackio as well: which, when, and with what a run is described."""
