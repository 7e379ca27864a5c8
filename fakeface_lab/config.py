"""Reads settings: config file < environment (`FAKEFACE_*`) < command line. They are declared in `settings`."""

import difflib
import json
import os
import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError, field_serializer
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from fakeface_lab.errors import ConfigError, without_credentials

__all__ = ["Settings", "Value", "find_project", "load_settings"]

ENV_PREFIX = "FAKEFACE_"

RANGE_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

SettingsT = TypeVar("SettingsT", bound="Settings")
Value = int | float | str  # of a hyperparameter; a bool is an int


class Settings(BaseSettings):
    """Settings of every program."""

    # Errors are raised for a message of our own. The other options keep `--help` short: no `--no-debug` beside
    # `--debug`, no `{str,None}`, no whole table as JSON.
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, cli_kebab_case=True, cli_implicit_flags="toggle",
        cli_hide_none_type=True, cli_exit_on_error=False, cli_avoid_json=True, nested_model_default_partial_update=True,
    )  # fmt: skip
    config_file: ClassVar[Path | None] = None

    config: Path | None = Field(None, description="TOML file with settings; the command line overrides it")
    tracking_uri: str | None = Field(
        None,
        description="MLflow store; default: MLFLOW_TRACKING_URI, else mlflow.db in the project folder",
    )
    tracking_patience_secs: float = Field(
        600, ge=0, description="how long to retry a write while the tracking server is unreachable, s"
    )
    debug: bool = Field(False, description="print the traceback of an error")

    @field_serializer("tracking_uri", "checkpoint_storage", check_fields=False)  # the second one is `TuneSettings`'s
    def _without_credentials(self, uri: str | None) -> str | None:
        # Dumped settings are logged with every run.
        return None if uri is None else without_credentials(uri)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: call or command line, environment, config file."""
        if cls.config_file is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=cls.config_file)


def find_project(start: Path | None = None) -> Path:
    """Return the nearest parent folder that contains `experiments/`, else the starting folder (absolute)."""
    start = (start or Path.cwd()).resolve()
    return next((folder for folder in (start, *start.parents) if (folder / "experiments").is_dir()), start)


def load_settings(settings_class: type[SettingsT], argv: list[str], prog: str) -> SettingsT:
    """Return the settings from config file, environment and command line.

    Args:
        settings_class: the settings of the program.
        argv: the command line without the program's name.
        prog: the program's name in `--help`.

    Raises:
        ConfigError: an unknown key (the message suggests the closest one), a value out of range, or an unreadable
            config file.
        SystemExit: after printing `--help`.
    """
    _check_environment(settings_class)
    _add_ranges(settings_class)
    try:
        command_line: CliSettingsSource[Any] = CliSettingsSource(
            settings_class, cli_parse_args=argv, cli_prog_name=prog, parse_args_method=_parse_words
        )
        config_file = _config_file(settings_class, command_line())
        # Pydantic reads the path of the config file from the class while it creates an instance.
        with_file = type(settings_class.__name__, (settings_class,), {"config_file": config_file})
        values = {"_cli_settings_source": command_line}
        return cast(SettingsT, with_file(**values))
    except SettingsError as err:
        raise ConfigError(_describe_parse_error(settings_class, str(err))) from err
    except ValidationError as err:
        raise ConfigError("; ".join(_describe_error(settings_class, problem) for problem in err.errors())) from err


def _parse_words(parser: ArgumentParser, words: Sequence[str], namespace: Namespace | None = None) -> Namespace:
    """Parse the command line with plain argparse, and hand lists of positional arguments on as JSON.

    pydantic-settings would split them at commas and interpret quotes and brackets, which names of files may contain.
    """
    parsed = ArgumentParser.parse_args(parser, words, namespace)
    # argparse has no public list of its arguments.
    for action in parser._actions:
        value = getattr(parsed, action.dest, None)
        if not action.option_strings and isinstance(value, list):
            setattr(parsed, action.dest, json.dumps(value))
    return parsed


def _check_environment(settings_class: type[Settings]) -> None:
    """Reject misspelled variables; others may be settings of another program."""
    known = settings_class.model_fields.keys()
    for variable in os.environ:
        name = variable.removeprefix(ENV_PREFIX).lower()
        if variable.startswith(ENV_PREFIX) and name not in known:
            # A high cutoff: a variable that is merely similar may belong to another program.
            for match in difflib.get_close_matches(name, known, n=1, cutoff=0.8):
                raise ConfigError(f"{variable}: unknown variable; did you mean {ENV_PREFIX}{match.upper()}?")


def _add_ranges(model: type[BaseModel]) -> None:
    """Add the range of each field to its description, which `--help` prints."""
    for field in model.model_fields.values():
        limits = [
            f"{word} {getattr(limit, kind)}"
            for limit in field.metadata
            for kind, word in RANGE_WORDS.items()
            if hasattr(limit, kind)
        ]
        explained = ", ".join(limits)
        # Fields are shared by all loads of a process: without the check, each load would add the range again.
        if not (field.description or "").endswith(explained):
            field.description = f"{field.description}; {explained}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            _add_ranges(field.annotation)


def _config_file(settings_class: type[Settings], command_line: dict[str, Any]) -> Path | None:
    text = command_line.get("config") or os.environ.get(ENV_PREFIX + "CONFIG")
    if text is None:
        return None
    path = Path(text)
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file; see experiments/ for examples")
    try:
        # Parsed here first, because pydantic-settings raises the parser's bare error, without the name of the file.
        with path.open("rb") as file:
            tomllib.load(file)
    except (ValueError, OSError) as err:  # TOMLDecodeError, not UTF-8, or no permission
        raise ConfigError(f"--config {path}: not valid TOML: {err}") from err
    return path


def _describe_error(settings_class: type[BaseModel], problem: ErrorDetails) -> str:
    """Return one line for a pydantic error: key, value, what is allowed."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] != "extra_forbidden":
        allowed = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        # If a key is missing or a whole table is wrong, the input is the table.
        value = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
        return f"{key}{value}: {allowed}" if key else allowed
    parent = key.rpartition(".")[0]
    known = [name.rpartition(".") for name in _known_keys(settings_class)]
    siblings = [name for prefix, _, name in known if prefix == parent]
    return f"{key}: unknown setting{_nearest(location[-1], siblings)}"


def _describe_parse_error(settings_class: type[BaseModel], message: str) -> str:
    text = message.removeprefix("error parsing CLI: ")
    # pydantic-settings names the variable in its text only.
    if text.endswith('from source "EnvSettingsSource"'):
        variable = ENV_PREFIX + text.split('"')[1].upper()
        return f"{variable} = {os.environ.get(variable)!r}: not valid JSON"
    prefix = "unrecognized arguments: "
    if not text.startswith(prefix):
        return text
    unknown = text.removeprefix(prefix).split()[0].split("=")[0]
    flags = ["--" + name.replace("_", "-") for name in _known_keys(settings_class)]
    return f"{unknown}: unknown argument{_nearest(unknown, flags)}"


def _nearest(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else "; --help lists all"


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys
