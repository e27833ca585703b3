"""Folders for the tests of SQL: on disk, and at a URL."""

from __future__ import annotations

import uuid

import pytest
from support.report_folders import write_runs, write_scores


@pytest.fixture(params=["disk", "memory"])
def roots(request, tmp_path):
    root = str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    write_scores(f"{root}/scores")
    write_runs(f"{root}/runs")
    return {"scores": f"{root}/scores", "runs": f"{root}/runs"}
