"""The documented recipe as a plain Keras script: what a user would run without this project.

    python benchmarks/documented_recipe.py FOLDER --epochs 2 --seed 0

Everything is held in memory as float32, as the document does, and nothing is tracked.
"""

import argparse
import random
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, f1_score

__all__: list[str] = []


def load(paths: list[Path], size_px: int = 300) -> npt.NDArray[np.float32]:
    """Return float32 (num_images, size, size, 3) in [0, 1]."""
    pictures = []
    for path in paths:
        picture = keras.utils.img_to_array(keras.utils.load_img(path, target_size=(size_px, size_px)))
        picture /= 255
        pictures.append(picture)
    return np.array(pictures)


def build(size_px: int = 300) -> keras.Model:
    """Return the documented network, written out by hand."""
    layers = keras.layers
    model = keras.Sequential()
    model.add(keras.Input((size_px, size_px, 3)))
    for filters in (32, 64):
        model.add(layers.Conv2D(filters, (3, 3), padding="same"))
        model.add(layers.Activation("relu"))
        model.add(layers.MaxPooling2D(pool_size=(2, 2)))
        model.add(layers.Dropout(0.25))
    model.add(layers.Flatten())
    model.add(layers.Dense(128))
    model.add(layers.Activation("relu"))
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(2))
    model.add(layers.Activation("softmax"))
    model.compile(
        loss="categorical_crossentropy",
        optimizer=keras.optimizers.Adam(learning_rate=1e-4),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def main() -> None:
    """Load, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds fake/ and real/")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=300)
    options = parser.parse_args()
    labelled = [
        (path, label)
        for label, name in enumerate(("fake", "real"))
        for path in sorted((options.folder / name).iterdir())
    ]
    random.Random(options.seed).shuffle(labelled)
    keras.utils.set_random_seed(options.seed)
    cut = int(0.8 * len(labelled))
    train, test = labelled[:cut], labelled[cut:]
    train_images, test_images = (load([path for path, _ in part], options.image_size) for part in (train, test))
    train_labels = keras.utils.to_categorical([label for _, label in train], 2)
    test_labels = keras.utils.to_categorical([label for _, label in test], 2)
    model = build(options.image_size)
    model.fit(
        train_images, train_labels, batch_size=32, epochs=options.epochs,
        validation_data=(test_images, test_labels), verbose=2,
    )  # fmt: skip
    decided = (model.predict(test_images, verbose=0) > 0.5).astype(int)
    print("accuracy", accuracy_score(test_labels.ravel(), decided.ravel()))
    print("f1", f1_score(test_labels.ravel(), decided.ravel()))


if __name__ == "__main__":
    main()
