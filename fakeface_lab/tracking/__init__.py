"""Everything that is written to or read from MLflow.

`store` finds and opens the store, `runs` writes one run, `owner` tells whose it is, `models` packs, logs and loads
models, `query` and `tags` speak MLflow's language, `patience` waits for a server that is away, `provenance` says what
code and machine a run came from.
"""

import os

# Read by MLflow when it is imported. Whoever set them keeps their choice.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Trying again is this project's own business (`patience`): MLflow's seven tries stall for four minutes before a user
# learns of it, and they send a request again whose answer was lost: two runs where one was meant.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
