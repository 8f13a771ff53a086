"""What several tests of data share."""

import pytest


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """A labelled set of noise and one for each codec."""
    from tests.data.batches import write_set

    folder = tmp_path_factory.mktemp("sets")
    codecs = (None, "factored", "lattice")
    return {codec: write_set(folder / str(codec), codec=codec, seed=i) for i, codec in enumerate(codecs)}
