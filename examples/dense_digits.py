"""Random search over a dense network on scikit-learn's digits, two trainings per configuration.

    python examples/dense_digits.py

Run it again to see its result; kill it while it runs, and run it again to resume.
"""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fakeface_lab import keras_tuner  # was: import keras_tuner


def build_model(hp):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Rescaling(1 / 16)])
    for number in range(hp.Int("num_layers", 1, 3)):
        model.add(keras.layers.Dense(hp.Int(f"units_{number}", 16, 64, step=16), activation="relu"))
    if hp.Boolean("dropout"):
        model.add(keras.layers.Dropout(0.25))
    model.add(keras.layers.Dense(10, activation="softmax"))
    rate = hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main():
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    tuner = keras_tuner.RandomSearch(
        build_model,
        objective="val_accuracy",
        max_trials=4,
        executions_per_trial=2,
        seed=1,
        directory="digits",
        project_name="dense network",
    )
    tuner.search_space_summary()
    stop_early = keras.callbacks.EarlyStopping("val_loss", patience=2)
    tuner.search(x_train, y_train, epochs=5, validation_split=0.2, callbacks=[stop_early])
    tuner.results_summary(3)
    model = tuner.get_best_models()[0]
    print("accuracy on the test digits:", model.evaluate(x_test, y_test, verbose=0)[1])


if __name__ == "__main__":
    main()
