import subprocess
import sys
import textwrap

import pytest


@pytest.mark.slow
def test_trials_in_a_process_that_has_begun_to_work_take_its_threads() -> None:
    """As in a notebook: TensorFlow cannot change its number of threads any more."""
    program = textwrap.dedent("""
        import psutil, tensorflow as tf
        fixed = psutil.cpu_count() + 1  # not what the search would choose
        tf.config.threading.set_intra_op_parallelism_threads(fixed)
        tf.constant(1) + 1
        from fakeface_lab.errors import ConfigError
        from fakeface_lab.search.session import choose_placement
        assert choose_placement(None, "inline", 1, 0) == ("inline", fixed)
        assert choose_placement(None, "inline", 1, fixed) == ("inline", fixed)
        try:
            choose_placement(None, "inline", 1, 1)
        except ConfigError as err:
            print(err)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "threads = 1: TensorFlow already runs with" in done.stdout
    assert done.stdout.endswith("in this process; use that number, or restart Python (in a notebook, its kernel)\n")
