"""Everything that is written to or read from MLflow.

`store` finds and opens the store, `runs` writes one run, `models` packs, logs and loads models, `patience` waits for
a server that is away, `provenance` says what code and machine a run came from.
"""
