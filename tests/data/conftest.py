from collections.abc import Callable

import pytest


@pytest.fixture
def pretend_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make the data believe that it is in process ``rank`` of ``world``."""

    def pretend(rank: int, world: int) -> None:
        monkeypatch.setattr("duality_ssl.data.sampler.rank", lambda: rank)
        monkeypatch.setattr("duality_ssl.data.sampler.world_size", lambda: world)
        monkeypatch.setattr("duality_ssl.data.datamodule.world_size", lambda: world)

    return pretend
