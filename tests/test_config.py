"""Settings come from file, environment and command line in this order; whatever is wrong is named with a way out."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fakeface_lab.config import Settings, find_project, load_settings
from fakeface_lab.errors import ConfigError
from fakeface_lab.settings import BaselineSettings, DataSettings, Hyperparameters

PROG = "python -m fakeface_lab.baseline"


@pytest.fixture(autouse=True)
def _in_project(project: Path) -> None:
    """Keep any file of the current folder out."""


def _load(*argv: str, settings_class: type[Settings] = BaselineSettings) -> Any:
    return load_settings(settings_class, list(argv), PROG)


def _refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as info:
        _load(*argv)
    assert "\n" not in str(info.value)
    return str(info.value)


def _file(text: str) -> str:
    Path("experiment.toml").write_text(text)
    return "experiment.toml"


def test_file_gives_way_to_environment_and_that_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file("epochs = 1\nseed = 1\nimage_size = 64\n")
    monkeypatch.setenv("FAKEFACE_EPOCHS", "2")
    monkeypatch.setenv("FAKEFACE_SEED", "2")
    settings = _load("--config", path, "--epochs", "3")
    assert (settings.epochs, settings.seed, settings.image_size, settings.threads) == (3, 2, 64, 0)


def test_nested_settings_are_merged_key_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file("[hyperparameters]\nfilters_1 = 8\nfilters_2 = 8\ndense_units = 8\n")
    monkeypatch.setenv("FAKEFACE_HYPERPARAMETERS", '{"filters_2": 16, "dense_units": 16}')
    settings = _load("--config", path, "--hyperparameters.dense-units", "24")
    assert settings.hyperparameters == Hyperparameters(filters_1=8, filters_2=16, dense_units=24)


def test_config_file_can_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKEFACE_CONFIG", _file("epochs = 4\n"))
    assert _load().epochs == 4
    Path("other.toml").write_text("epochs = 5\n")
    assert _load("--config", "other.toml").epochs == 5
    assert _load("--config", "other.toml").config == Path("other.toml")


def test_one_load_does_not_leak_into_the_next() -> None:
    assert _load("--config", _file("epochs = 4\n")).epochs == 4
    assert _load().epochs == 10


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _load().epochs = 3
    with pytest.raises(ValidationError, match="frozen"):
        _load().hyperparameters.filters_1 = 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochz", "3"], "--epochz: unknown argument; did you mean --epochs?"),
        (["--epoch", "3"], "--epoch: unknown argument; did you mean --epochs?"),  # no abbreviations
        (["--image_size=3"], "--image_size: unknown argument; did you mean --image-size?"),
        (["--learning-rate", "3"], "--learning-rate: unknown argument; did you mean --hyperparameters.learning-rate?"),
        (["xyz"], "xyz: unknown argument; --help lists all"),
        (["--epochs", "0"], "epochs = '0': should be greater than or equal to 1"),
        (["--epochs", "many"], "epochs = 'many': should be a valid integer, unable to parse string as an integer"),
        (["--seed", "-1"], "seed = '-1': should be greater than or equal to 0"),
        (["--image-size", "4096"], "image_size = '4096': should be less than or equal to 2048"),
        (["--split", "random"], "split = 'random': should be 'documented' or 'sealed'"),
        (["--name", ""], "name = '': String should have at least 1 character"),
        (["--seed"], "argument --seed: expected one argument"),
        (
            ["--hyperparameters.conv-dropout", "1"],
            "hyperparameters.conv_dropout = '1': should be less than 1",
        ),
        (
            ["--epochs", "0", "--seed", "x"],
            "seed = 'x': should be a valid integer, unable to parse string as an integer; "
            "epochs = '0': should be greater than or equal to 1",
        ),
    ],
)
def test_wrong_word_on_the_command_line_is_named(argv: list[str], message: str) -> None:
    assert _refusal(*argv) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochz = 3", "epochz: unknown setting; did you mean epochs?"),
        ("zzzz = 3", "zzzz: unknown setting; --help lists all"),
        ("[hyperparameters]\ndense_unit = 3", "hyperparameters.dense_unit: unknown setting; did you mean dense_units?"),
        ("[hyperparameters]\nepochs = 3", "hyperparameters.epochs: unknown setting; --help lists all"),
        ("epochs = 2.5", "epochs = 2.5: should be a valid integer, got a number with a fractional part"),
        ("hyperparameters = 3", "hyperparameters = 3: should be a valid dictionary"),
        ("epochs = ", "--config experiment.toml: not valid TOML: Invalid value (at"),
    ],
)  # fmt: skip
def test_wrong_line_in_the_file_is_named(text: str, message: str) -> None:
    assert _refusal("--config", _file(text)).startswith(message)


def test_config_file_that_is_missing_or_no_text_is_named(project: Path) -> None:
    expected = "--config none.toml: no such file; see experiments/ for examples"
    assert _refusal("--config", "none.toml") == expected
    assert _refusal("--config", "experiments").startswith("--config experiments: no such file")
    Path("binary.toml").write_bytes(b"name = '\xff\xfe'")
    assert _refusal("--config", "binary.toml").startswith("--config binary.toml: not valid TOML:")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FAKEFACE_EPOCHS", "0", "epochs = '0': should be greater than or equal to 1"),
        ("FAKEFACE_EPOCH", "3", "FAKEFACE_EPOCH: unknown variable; did you mean FAKEFACE_EPOCHS?"),
        ("FAKEFACE_HYPERPARAMETERS", "{", "FAKEFACE_HYPERPARAMETERS = '{': not valid JSON"),
    ],
)
def test_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv(variable, value)
    assert _refusal() == message


def test_variable_of_another_program_or_of_the_cache_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKEFACE_EPOCHS", "3")  # not a setting of the data program
    monkeypatch.setenv("FAKEFACE_TRIALS", "3")
    monkeypatch.setenv("FAKEFACE_CACHE", "somewhere")
    assert not _load(settings_class=DataSettings).clear_cache


def _fields(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _fields(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def _programs(settings_class: type[Settings] = Settings) -> list[type[Settings]]:
    return [
        settings_class,
        *(deeper for subclass in settings_class.__subclasses__() for deeper in _programs(subclass)),
    ]


@pytest.mark.parametrize("settings_class", _programs(), ids=lambda model: model.__name__)
def test_help_explains_every_setting_with_range_and_default(
    settings_class: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _load("--help", settings_class=settings_class)
    printed = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for name, field in _fields(settings_class).items():
        flag = (field.alias or name).replace("_", "-")
        # What has no flag is a word on its own: RUN, FILES...
        mention = f"--{flag} " if f"--{flag} " in printed else f" {name.upper()} "
        assert mention in printed
        assert field.description, name
        assert " ".join(field.description.split()).replace("- ", "-") in printed, name
        for limit in field.metadata:
            for kind, words in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
                if hasattr(limit, kind):
                    assert f"{words} {getattr(limit, kind)}" in printed[printed.rindex(mention) :], name


def test_settings_show_units() -> None:
    _load()
    fields = _fields(BaselineSettings)
    assert fields["image_size"].description.endswith(", px; at least 16, at most 2048")
    assert fields["tracking_patience_secs"].description.endswith(", s; at least 0")


def test_project_is_the_nearest_folder_with_experiments(project: Path, tmp_path: Path) -> None:
    deep = project / "a" / "b"
    deep.mkdir(parents=True)
    assert find_project(deep) == project
    assert find_project() == project
    (deep / "experiments").mkdir()
    assert find_project(deep) == deep
    outside = tmp_path / "outside"
    outside.mkdir()
    assert find_project(outside) == outside


def test_help_loads_no_tensorflow_and_is_quick() -> None:
    code = (
        "import sys\n"
        "from fakeface_lab.baseline import main\n"
        "code = main(['--help'])\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, (code, heavy)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    durations_secs = []
    for command in (["-c", code], ["-m", "fakeface_lab.baseline", "--help"]):
        started = time.monotonic()
        output = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        durations_secs.append(time.monotonic() - started)
        assert (output.returncode, output.stderr) == (0, "")
        assert "usage: python -m fakeface_lab.baseline" in output.stdout
    assert min(durations_secs) < 3
