"""One small run that several files look at."""

import pytest

from tests.nst.test_run import go


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run in this process and its report; who changes it takes a copy."""
    work_dir = tmp_path_factory.mktemp("nst") / "run"
    return work_dir, go(work_dir)
