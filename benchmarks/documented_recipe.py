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


Labelled = list[tuple[Path, int]]


def split(folder: Path, seed: int) -> tuple[Labelled, Labelled]:
    """Return the 80 % to train on and the rest: files in shuffled order, each with its label."""
    labelled = [
        (path, label) for label, name in enumerate(("fake", "real")) for path in sorted((folder / name).iterdir())
    ]
    random.Random(seed).shuffle(labelled)
    cut = int(0.8 * len(labelled))
    return labelled[:cut], labelled[cut:]


def load(labelled: Labelled, size_px: int = 300) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return images (n, size, size, 3) in [0, 1] and one-hot labels (n, 2), both float32."""
    pictures = []
    for path, _ in labelled:
        picture = keras.utils.img_to_array(keras.utils.load_img(path, target_size=(size_px, size_px)))
        picture /= 255
        pictures.append(picture)
    return np.array(pictures), keras.utils.to_categorical([label for _, label in labelled], 2)


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
    keras.utils.set_random_seed(options.seed)
    train, (test_images, test_labels) = (load(part, options.image_size) for part in split(options.folder, options.seed))
    model = build(options.image_size)
    model.fit(
        *train, batch_size=32, epochs=options.epochs,
        validation_data=(test_images, test_labels), verbose=2,
    )  # fmt: skip
    decided = (model.predict(test_images, verbose=0) > 0.5).astype(int)
    print("accuracy", accuracy_score(test_labels.ravel(), decided.ravel()))
    print("f1", f1_score(test_labels.ravel(), decided.ravel()))


if __name__ == "__main__":
    main()
