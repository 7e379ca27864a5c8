"""How good a model is and whether to believe it: arrays in, numbers out; no files, no MLflow, no TensorFlow.

Shared by all: `intervals` (rates and scores with their uncertainty, per group too).
Models: `scores` (documented figures, detection panel, calibration), `comparison` and `significance` (is one
configuration better), `selection` (what a search's best score is worth), `stress` (one property of the images changed
at a time), `explanation` (where the evidence is, how much of it a simple probe has).
Data: `audit` (what gives the label away).
"""
