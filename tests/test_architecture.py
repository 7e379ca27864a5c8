"""The shape of the house, read from the source: who imports whom, what a file is called, what it begins with."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "fakeface_lab"
FILES = sorted(PACKAGE.rglob("*.py"))

PROGRAMS = {"baseline", "tune", "audit", "evaluate", "compare", "predict", "doctor", "data.__main__"}

# A unit is a module or a folder of the package. It imports itself and what stands above it in this list, so that
# whatever is left can be read, tested and changed without what stands below it.
LAYERS = [
    {"errors", "files", "garbage"},
    {"config"},
    {"backend", "settings", "terminal"},
    {"evaluation", "tracking"},
    {"figures", "training"},
    {"data", "search"},
    {"detector", "keras_tuner"},
    {"assess"},
    PROGRAMS,
]
LAYER_OF = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}

MAX_PROGRAM_LINES = 120
MAX_LINES = 350
MAX_MODULES = 122
MAX_SEARCH_LINES = 4500
MAX_FILES = {"": 16, "detector": 16, "tracking": 14}
MAX_FILES_ELSEWHERE = 12
MAX_ENGINE_MODULES = 38
MAX_TUNER_MODULES = 70


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _unit(module: str) -> str:
    return module if module in PROGRAMS else module.split(".")[0]


def _imports(tree: ast.Module, *, lazy: bool = True) -> Iterator[str]:
    """Yield the full name of everything imported; with `lazy=False` only what importing the module imports."""
    for node in ast.walk(tree) if lazy else _outside_functions(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _named(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


each_file = pytest.mark.parametrize("path", FILES, ids=_named)


def _wrong_imports(module: str, tree: ast.Module) -> list[str]:
    unit = _unit(module)
    wrong = []
    for name in _imports(tree):
        if not name.startswith("fakeface_lab."):
            continue
        imported = name.removeprefix("fakeface_lab.")
        target = _unit(imported) if imported.startswith("data.__main__") else imported.split(".")[0]
        is_own_folder = target == unit or (unit == "data" and target == "data")
        if not is_own_folder and LAYER_OF.get(target, len(LAYERS)) >= LAYER_OF[unit]:
            wrong.append(imported)
    return wrong


@each_file
def test_imports_run_one_way(path: Path) -> None:
    module = _module_name(path)
    if module == "":
        # Importing the package loads nothing; type checkers and the first use of `Tuner` see where it is.
        assert set(_imports(_tree(path), lazy=False)) <= {"typing.TYPE_CHECKING", "typing.Any"}
        return
    assert _unit(module) in LAYER_OF, f"{_named(path)}: say in LAYERS what it may import"
    assert _wrong_imports(module, _tree(path)) == []


def test_a_wrong_import_would_be_noticed() -> None:
    tree = ast.parse(
        "from fakeface_lab.data.images import load_images\ndef f():\n    import fakeface_lab.detector.mlflow_run"
    )
    assert _wrong_imports("assess", tree) == []
    assert _wrong_imports("search.run.driver", tree) == ["data.images.load_images", "detector.mlflow_run"]
    assert _wrong_imports("baseline", tree) == []
    assert _wrong_imports("baseline", ast.parse("from fakeface_lab import tune")) == ["tune"]
    assert list(_imports(tree, lazy=False)) == ["fakeface_lab.data.images.load_images"]


@each_file
def test_only_their_owner_imports_a_library(path: Path) -> None:
    unit = _unit(_module_name(path))
    for name in _imports(_tree(path)):
        library = name.split(".")[0]
        if library == "mlflow":
            assert unit == "tracking", f"{name}: `tracking` owns MLflow"
        if library == "keras_tuner":
            assert unit in {"backend", "detector", "keras_tuner", "search", "training"}, f"{name}: knows no KerasTuner"
        if library == "kagglehub":
            assert _module_name(path) == "data.sources"


@each_file
def test_only_tracking_talks_to_the_store(path: Path) -> None:
    if _unit(_module_name(path)) != "tracking":
        nodes = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute))
        clients = [node.lineno for node in nodes if node.attr == "client"]
        assert clients == [], "ask a function of `tracking`"


@each_file
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_there_are_few_rooms() -> None:
    modules = [path for path in FILES if len(_tree(path).body) > 1]  # a package's docstring alone is none
    assert len(modules) <= MAX_MODULES
    for folder in {path.parent for path in FILES}:
        name = "" if folder == PACKAGE else folder.relative_to(PACKAGE).as_posix()
        assert len(list(folder.glob("*.py"))) <= MAX_FILES.get(name, MAX_FILES_ELSEWHERE), name
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / "search").rglob("*.py"))
    assert lines <= MAX_SEARCH_LINES


@pytest.mark.parametrize("path", sorted((PACKAGE / "search").rglob("*.py")), ids=_named)
def test_the_search_knows_no_faces(path: Path) -> None:
    words = re.findall(r"\b(?:faces?|fakes?|images?|detectors?|documented|stylegan)\b", path.read_text("utf-8"), re.I)
    assert words == []


def test_the_search_engine_stands_alone() -> None:
    # By the name of the module itself: the drop-in gives KerasTuner's modules a second name. One after the other in one
    # process, because TensorFlow takes seconds to load.
    code = (
        "import sys\n"
        "for name in ('Search', 'Tuner'):\n"
        "    getattr(__import__('fakeface_lab'), name)\n"
        "    found = {key: module.__name__ for key, module in sys.modules.items()\n"
        "             if module.__name__.partition('.')[0] in ('fakeface_lab', 'imagehash', 'kagglehub')}\n"
        "    print(*set(found.values()))\n"
        "    for key in found: del sys.modules[key]\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    most_modules = (MAX_ENGINE_MODULES, MAX_TUNER_MODULES)
    for line, most in zip(output.stdout.splitlines(), most_modules, strict=True):
        ours = [module for module in line.split() if module.startswith("fakeface_lab")]
        assert line.split() == ours
        assert len(ours) <= most
        foreign = (["data"], ["evaluation"], ["detector"], ["assess"])
        assert not {one for one in ours if one.split(".")[1:2] in foreign}


@pytest.mark.parametrize("path", [path for path in FILES if "evaluation" in path.parts], ids=_named)
def test_evaluation_takes_arrays_in_and_gives_numbers_out(path: Path) -> None:
    # Saliency differentiates a model, so it loads TensorFlow when it is called; Pillow works on arrays there.
    imports = _imports(_tree(path), lazy=path.stem != "explanation")
    assert not {name.split(".")[0] for name in imports} & {"mlflow", "tensorflow", "keras", "pathlib", "shutil"}
    assert "mlflow" not in {name.split(".")[0] for name in _imports(_tree(path))}
    calls = [node.func for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
    assert "open" not in {call.id for call in calls if isinstance(call, ast.Name)}


@each_file
def test_file_begins_with_what_it_owns(path: Path) -> None:
    tree = _tree(path)
    docstring = ast.get_docstring(tree)
    assert docstring, "a docstring first: what the file owns"
    assert docstring.splitlines()[0].endswith((".", ":", ";", "?")), "its first line is a sentence"


def _public_definitions(tree: ast.Module) -> set[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


@each_file
def test_public_names_are_listed(path: Path) -> None:
    tree = _tree(path)
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    if path.name == "__init__.py" and not _public_definitions(tree):
        return
    assert len(listed) == 1, "__all__ says what others may use"
    (names,) = listed
    assert len(set(names)) == len(names)
    assert _public_definitions(tree) <= set(names), "a public function or class is missing from __all__"


@each_file
def test_file_is_named_after_what_it_owns(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base"}


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_program_only_wires(program: str) -> None:
    path = PACKAGE.joinpath(*program.split(".")).with_suffix(".py")
    if not path.exists():
        pytest.skip(f"{_named(path)} is not there")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_PROGRAM_LINES
    functions = {node.name for node in _tree(path).body if isinstance(node, ast.FunctionDef)}
    assert "main" in functions
    heavy = {"tensorflow", "keras", "mlflow", "sklearn", "scipy", "matplotlib", "numpy", "pandas"}
    assert not {name.split(".")[0] for name in _imports(_tree(path), lazy=False)} & heavy, "--help must not wait"


def test_importing_the_package_loads_no_library() -> None:
    code = (
        "import sys, fakeface_lab, fakeface_lab.config, fakeface_lab.errors, fakeface_lab.terminal\n"
        "print({'tensorflow', 'keras', 'mlflow', 'sklearn'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"


def test_listed_names_exist() -> None:
    for path in FILES:
        module = _module_name(path)
        if path.name == "__main__.py":
            continue
        loaded = importlib.import_module(f"fakeface_lab.{module}".rstrip("."))
        missing = [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)]
        assert missing == [], f"{module}: {missing}"


@pytest.mark.parametrize("path", sorted((PROJECT / "tests").rglob("test_*.py")), ids=_named)
def test_test_files_have_names_of_their_own(path: Path) -> None:
    folders = [folder for folder in path.parents if folder.is_relative_to(PROJECT / "tests")]
    missing = [_named(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert missing == [], "outside a package, pytest would load one file in place of another of its name"


PATH_IN_TEXT = re.compile(r"`((?:fakeface_lab|experiments|tests|benchmarks|docs)/[\w./*-]*)`")
LINK_IN_TEXT = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
PROGRAM_IN_TEXT = re.compile(r"python -m (fakeface_lab[\w.]*)")


@pytest.mark.parametrize(
    "path", [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_what_the_texts_name_exists(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    text = path.read_text(encoding="utf-8")
    for name in PATH_IN_TEXT.findall(text):
        assert list(PROJECT.glob(name.rstrip("/"))), f"{path.name} names {name}"
    for name in LINK_IN_TEXT.findall(text):
        assert (path.parent / name).exists(), f"{path.name} links to {name}"
    for name in PROGRAM_IN_TEXT.findall(text):
        folder = PROJECT.joinpath(*name.rstrip(".").split("."))
        assert folder.with_suffix(".py").exists() or (folder / "__main__.py").exists(), f"{path.name} runs {name}"
