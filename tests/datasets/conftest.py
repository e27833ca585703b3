import pytest
from curate.datasets import storage
from fsspec import register_implementation
from support.moody import Moody


@pytest.fixture
def moody(tmp_path, monkeypatch):
    register_implementation("moody", Moody, clobber=True)
    monkeypatch.setattr(Moody, "failures", [])
    monkeypatch.setattr(Moody, "calls", [])
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    return f"moody://{tmp_path}/file"
