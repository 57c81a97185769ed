"""A process ends although its loaders are alive: tried in processes of their own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.image_files import write_folder

SCRIPT = """
    import multiprocessing, subprocess
    from duality_ssl import SSLDataModule

    batches = iter(SSLDataModule({arguments}, batch_size=4, num_workers=2).train_dataloader())
    next(batches)
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    subprocess.run(["kill", "-TERM", *workers], check=True)  # as a scheduler does
    next(batches)
    {end}
"""
FOLDER = "'folder', 'images', image_size=8"
ENDS = {
    "of digits": ("'digits'", "", 0, ""),
    "of files": (FOLDER, "", 0, ""),
    "by an error": (FOLDER, "raise ArithmeticError", 1, "ArithmeticError"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "end", "code", "said"), ENDS.values(), ids=ENDS)
def test_process_ends_within_an_epoch(
    arguments: str, end: str, code: int, said: str, tmp_path: Path
) -> None:
    write_folder(tmp_path / "images", train=20, val=1)
    script = textwrap.dedent(SCRIPT.format(arguments=arguments, end=end))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, bool(said)), done.stderr
    assert done.stderr.rstrip().endswith(said)


LEFT = """
    import gc, multiprocessing, time
    from duality_ssl import SSLDataModule

    module = SSLDataModule('digits', batch_size=4, num_workers=1)
    module.itself = module, iter(module.train_dataloader())
    next(module.itself[1])
    (worker,) = multiprocessing.active_children()
    del module
    gc.collect()
    print(worker.is_alive())
"""


@pytest.mark.slow
def test_workers_end_with_a_loader_that_is_collected() -> None:
    """The collector closes the worker's queue first, so that only SIGTERM tells it to end."""
    command = [sys.executable, "-c", textwrap.dedent(LEFT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
