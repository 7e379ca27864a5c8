"""What a data set, a model and a prediction are worth: the work behind `audit`, `evaluate` and `predict`.

`inspection` looks over a data set. `tracked_model` makes a model of the store ready, `evaluation_images` says which
images it is judged on, `assessment` judges it, `explanation` shows where it looks. `application` decides on single
files. `reports` is what people read of all three.
"""
