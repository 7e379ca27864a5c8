"""The work behind `audit`, `evaluate` and `predict`: what a data set and a tracked model are worth.

`inspection` audits a data set. `tracked_model` loads a model from the store with its own images and split, `assessment`
measures it on images, and `application` applies it: decisions on single files, and where it looks.
"""
