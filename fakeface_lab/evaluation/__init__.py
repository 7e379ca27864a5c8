"""How good a model is, from its answers: arrays in, numbers out; no files, no MLflow, no TensorFlow.

Modules: `inputs` (which arrays are accepted), `intervals` (rates and bootstrap intervals), `scores` (the
documented figures and the detection panel), `calibration` (are the probabilities true), `comparison` (is one
model better than another), `selection` (what a search's best score is worth), `explained` (how much of an
accuracy simple features reach), `slices` (accuracy of named groups of images).
"""
