import gc
import subprocess
import sys
from contextlib import suppress

from fakeface_lab.garbage import collector_paused, loading_libraries


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_collector_works_again_after_an_error() -> None:
    with suppress(ValueError), collector_paused():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def test_a_collector_that_the_caller_has_turned_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_rounds_look_at_nothing_that_libraries_left() -> None:
    program = (
        "import gc\n"
        "import fakeface_lab.backend\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000, len(gc.get_objects()) < 100_000)"
    )
    assert run(program) == "True True True"


def test_the_end_of_a_process_looks_at_nothing() -> None:
    program = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(len(gc.get_objects()) < 100))\n"  # called last
        "import fakeface_lab.backend\n"
    )
    assert run(program) == "True"


def test_models_of_a_caller_who_has_loaded_tensorflow_can_be_freed() -> None:
    program = (
        "import gc, weakref\n"
        "import tensorflow\n"
        "class Model: pass\n"
        "model = Model()\n"
        "model.layer, gone = model, weakref.ref(model)\n"
        "import fakeface_lab.backend\n"
        "del model\n"
        "gc.collect()\n"
        "print(gone())"
    )
    assert run(program) == "None"


def test_what_is_loaded_outside_of_a_fresh_process_is_left_alone() -> None:
    import tensorflow  # noqa: F401

    with loading_libraries():
        assert gc.isenabled()
        made: list[object] = []
    assert any(one is made for one in gc.get_objects()), "not frozen"
