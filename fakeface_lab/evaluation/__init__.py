"""How good a model is and whether to believe it: arrays in, numbers out; no files, no MLflow, no TensorFlow.

Models: `inputs` (which arrays are accepted), `intervals` (rates and bootstrap intervals), `scores` (documented
figures, detection panel), `calibration` (are the probabilities true), `comparison` (is one model better),
`selection` (what a search's best score is worth), `slices` (named groups of images), `stress` (one property
changed at a time), `stress_objective` and `stress_comparison` (searching for what survives it), `saliency` (where
in the image the evidence is).

Data: `audit` (findings and their thresholds), `probe_features` and `probes` (small models that see almost
nothing), `explained` (how much of an accuracy they reach), `pure_slices`, `duplicates`, `card` (the data card).
"""
