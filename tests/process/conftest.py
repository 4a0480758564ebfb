from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    # pytest's own folders have long names, and a socket's path has 107 bytes at most
    with TemporaryDirectory(prefix="pxs-") as folder:
        made = Stage(Path(folder))
        try:
            yield made
        finally:
            made.end()
