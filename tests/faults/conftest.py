from __future__ import annotations

import pytest
from faults.support import Many, make_many
from support.prepared import Digits


@pytest.fixture(scope="session")
def many(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Many:
    return make_many(digits, tmp_path_factory.mktemp("many"))
