"""The search: what KerasTuner suggests, what the MLflow store remembers, who trains."""
