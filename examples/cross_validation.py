"""Cross-validation of a Keras model: each fold is a run under its trial, and the score their mean.

python examples/cross_validation.py
"""

import keras
from sklearn.datasets import load_wine

from fakeface_lab import keras_tuner  # was: import keras_tuner


def build_model(hp):
    model = keras.Sequential([keras.Input((13,)), keras.layers.BatchNormalization()])
    model.add(keras.layers.Dense(hp.Choice("units", [8, 16, 32]), activation="relu"))
    model.add(keras.layers.Dropout(hp.Choice("dropout", [0.0, 0.25, 0.5])))
    model.add(keras.layers.Dense(3, activation="softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main():
    x, y = load_wine(return_X_y=True)
    tuner = keras_tuner.RandomSearch(
        keras_tuner.CrossValidation(build_model, folds=3), "val_accuracy", max_trials=3, seed=1, project_name="wine"
    )
    tuner.search(x, y, epochs=10)
    tuner.results_summary()


if __name__ == "__main__":
    main()
