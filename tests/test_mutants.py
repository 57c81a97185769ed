"""The list of mutants fits the source; ``make mutants`` tries them."""

import pytest
from mutants import PACKAGE, ROOT, Mutant, listed

MUTANTS = list(listed())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_has_one_place_and_is_python(mutant: Mutant) -> None:
    mutated = mutant.applied()
    assert mutated != (PACKAGE / mutant.file).read_text(encoding="utf-8")
    compile(mutated, mutant.file, "exec")


def test_mutants_are_many_and_their_test_files_exist() -> None:
    assert len(set(MUTANTS)) == len(MUTANTS) >= 60
    files = {word for mutant in MUTANTS for word in mutant.tests if word.endswith(".py")}
    assert all((ROOT / "tests" / file).is_file() for file in files)


def test_a_text_that_does_not_occur_is_named() -> None:
    with pytest.raises(ValueError, match=r"'no such text' once in .*/optim\.py, .* 0 times"):
        Mutant("optim.py", "no such text", "", ()).applied()
