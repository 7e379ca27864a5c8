"""Everything that is written to or read from MLflow.

`store` opens the store and pages through its runs, `writer` retries writes, `runs` writes one run, `duplicates` makes
sure that it exists once, `owner` records its code, machine and process, `models` logs and loads models, `registry`
names their versions, `scores` writes and reads per-image scores, `lookup` finds runs and models by name, `datasets`
finds audits and counts openings of test images, `views` saves views of a search in MLflow's page.
"""

import os

# MLflow reads them when it is imported. Values that are already set win.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow would report how it creates its tables, and draw a progress bar for each download, in the middle of what a
# program prints.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The programs print their own links (`Store.places`); with a server MLflow adds one at the end of every run, so of
# every trial.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# `writer` retries instead: MLflow's seven attempts stall for four minutes without a message, and they repeat a request
# whose answer was lost, which creates two runs instead of one.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
# MLflow's 120 s would leave a server that hangs five tries within the ten minutes for which a write is retried.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# Files go through the server, also large ones: its store may be closed to clients, and an error text with a presigned
# address would hold a key.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
