from copy import deepcopy

import pytest
from support.moody import moody as moody
from support.prepared import TINY_CLIP


@pytest.fixture
def clip_config():
    return deepcopy(TINY_CLIP)
