"""How the model of a trial is made from its values: the same one, whatever the process has built before."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.errors import ModelError, SearchError
from fakeface_lab.search.suggest.oracles import default_values

__all__ = ["ModelRecipe"]


@dataclass(frozen=True)
class ModelRecipe:
    """How a model is made from values.

    Attributes:
        hypermodel: the user's.
        space: all hyperparameters that can appear.
        compile_args: replace what the hypermodel compiles with (`optimizer`, `loss`, `metrics`).
        dtype_policy: of the user's process; Keras forgets it between two models.
        accepts_undeclared: whether a hyperparameter outside the space takes its default, instead of failing.
    """

    hypermodel: keras_tuner.HyperModel
    space: keras_tuner.HyperParameters
    compile_args: Mapping[str, Any]
    dtype_policy: str
    accepts_undeclared: bool

    def hyperparameters(self, values: Mapping[str, Any]) -> keras_tuner.HyperParameters:
        """Return the container that `build` and `fit` of the hypermodel are given."""
        hp = self.space.copy()
        hp.values = dict(values)
        return hp

    def build(self, hp: keras_tuner.HyperParameters, seed: int) -> keras.Model:
        """Return the untrained model, whatever this process has built before.

        Raises:
            ModelError: the hypermodel returns something else.
        """
        keras.backend.clear_session()
        keras.config.set_dtype_policy(self.dtype_policy)
        keras.utils.set_random_seed(seed)
        model = self.hypermodel.build(hp)
        if not isinstance(model, keras.Model):
            raise ModelError(f"build(hp): returned {type(model).__name__}; return a keras.Model")
        if self.compile_args:
            own = {"optimizer": getattr(model, "optimizer", None), "loss": getattr(model, "loss", None)}
            # A metric or optimizer has state: each model needs its own.
            model.compile(**{key: value for key, value in own.items() if value is not None}
                          | copy.deepcopy(dict(self.compile_args)))  # fmt: skip
        return model

    def require_declared(self, hp: keras_tuner.HyperParameters) -> None:
        """Refuse hyperparameters that appeared in a trial and that no trial was ever given a value for."""
        known = {known.name for known in self.space.space}
        unknown = [new.name for new in hp.space if new.name not in known]
        if unknown and not self.accepts_undeclared:
            raise SearchError(
                f"hyperparameter {', '.join(unknown)}: appears for some values only and is not in the search space; "
                f"declare it in HyperModel.declare_hyperparameters or in the oracle's hyperparameters="
            )

    def digest(self, seed: int) -> str:
        """Return a digest of the model at all defaults; empty where it cannot be described."""
        try:
            model = self.build(self.hyperparameters(default_values(self.space)), seed)
            return hashlib.sha256(model.to_json().encode()).hexdigest()[:16]
        except Exception:  # a subclass without a description, or a build that fails: its trial will tell
            return ""
