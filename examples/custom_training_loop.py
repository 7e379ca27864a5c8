"""A training loop of one's own in `run_trial`: its epochs become curves in MLflow, its model that of the trial.

python examples/custom_training_loop.py
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from fakeface_lab import keras_tuner  # was: import keras_tuner


def build_model(hp):
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Dense(hp.Choice("units", [16, 32]), activation="relu"),
            keras.layers.Dense(10),
        ]
    )


class OwnLoop(keras_tuner.RandomSearch):
    def run_trial(self, trial, x, y, x_val, y_val, epochs=3):
        hp = trial.hyperparameters
        model = self.hypermodel.build(hp)
        optimizer = keras.optimizers.Adam(hp.Float("learning_rate", 1e-4, 1e-2, sampling="log", default=1e-3))
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0).batch(64)

        @tf.function
        def step(images, labels):
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(images, training=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        best = np.inf
        for epoch in range(epochs):
            self.on_epoch_begin(trial, model, epoch, logs={})
            for images, labels in batches:
                step(images, labels)
            val_loss = float(loss_of(y_val, model(x_val)))
            self.on_epoch_end(trial, model, epoch, logs={"val_loss": val_loss})
            if val_loss < best:
                best = val_loss
                self.save_model(trial.trial_id, model, step=epoch)
        return {"val_loss": best}


def main():
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32")
    tuner = OwnLoop(
        build_model, keras_tuner.Objective("val_loss", "min"), max_trials=3, seed=1, project_name="own loop"
    )
    tuner.search(x[:1400], y[:1400], x[1400:], y[1400:])
    tuner.results_summary()


if __name__ == "__main__":
    main()
