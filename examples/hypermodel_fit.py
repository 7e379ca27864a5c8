"""A HyperModel that also tunes how it is trained: batch size, and whether the inputs are scaled.

python examples/hypermodel_fit.py
"""

import keras
from sklearn.datasets import load_digits

from fakeface_lab import keras_tuner  # was: import keras_tuner


class Digits(keras_tuner.HyperModel):
    def build(self, hp):
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(hp.Choice("units", [16, 32, 64]), "relu")])
        model.add(keras.layers.Dense(10, activation="softmax"))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    def fit(self, hp, model, x, y, validation_data, **kwargs):
        scale = 16.0 if hp.Boolean("scale") else 1.0
        x_val, y_val = validation_data
        return model.fit(
            x / scale, y, validation_data=(x_val / scale, y_val), batch_size=hp.Choice("batch_size", [16, 64]), **kwargs
        )


def main():
    x, y = load_digits(return_X_y=True)
    tuner = keras_tuner.BayesianOptimization(
        Digits(), objective="val_loss", max_trials=5, num_initial_points=3, seed=1, project_name="scaled digits"
    )
    tuner.search(x[:1400], y[:1400], validation_data=(x[1400:], y[1400:]), epochs=3)
    print(tuner.get_best_hyperparameters()[0].values)


if __name__ == "__main__":
    main()
