"""Scikit-learn models, cross-validated: each fold is a run, and the score their mean.

python examples/sklearn_models.py
"""

from sklearn import datasets, ensemble, linear_model, metrics, model_selection

from fakeface_lab import keras_tuner  # was: import keras_tuner


def build_model(hp):
    if hp.Choice("model", ["forest", "ridge"]) == "forest":
        return ensemble.RandomForestClassifier(
            n_estimators=hp.Int("n_estimators", 10, 50, step=10), max_depth=hp.Int("max_depth", 3, 10)
        )
    return linear_model.RidgeClassifier(alpha=hp.Float("alpha", 1e-3, 1.0, sampling="log"))


def main():
    x, y = datasets.load_iris(return_X_y=True)
    x_train, x_test, y_train, y_test = model_selection.train_test_split(x, y, test_size=0.2, random_state=0)
    tuner = keras_tuner.SklearnTuner(
        oracle=keras_tuner.oracles.BayesianOptimizationOracle(
            objective=keras_tuner.Objective("score", "max"), max_trials=6, num_initial_points=3, seed=1
        ),
        hypermodel=build_model,
        scoring=metrics.make_scorer(metrics.accuracy_score),
        cv=model_selection.StratifiedKFold(5),
        project_name="iris",
    )
    tuner.search(x_train, y_train)
    model = tuner.get_best_models()[0]
    print("accuracy on the test flowers:", model.score(x_test, y_test))


if __name__ == "__main__":
    main()
