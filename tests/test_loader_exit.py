"""A process ends although its loaders are alive: tried in processes of their own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from image_files import write_folder

SCRIPT = """
    import multiprocessing, signal
    from duality_ssl import SSLDataModule

    batches = iter(SSLDataModule({arguments}, batch_size=4, num_workers=2).train_dataloader())
    next(batches)
    for worker in multiprocessing.active_children():
        worker.terminate()  # as a scheduler does
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
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (code, [said] if said else [])
