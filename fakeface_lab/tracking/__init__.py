"""Everything that is written to or read from MLflow.

`store` opens the store and pages through its runs, `writer` retries writes, `runs` writes one run, `owner` tells which
process writes it, `models` logs, loads and registers models, `scores` writes and reads per-image scores, `lookup` finds
runs and models by name, `datasets` finds audits and counts openings of test images, `views` saves views of a search in
MLflow's page.
"""

import os

# MLflow reads them when it is imported. Values that are already set win.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# `writer` retries instead: MLflow's seven attempts stall for four minutes without a message, and they repeat a request
# whose answer was lost, which creates two runs instead of one.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
