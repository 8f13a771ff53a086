"""One export for all tests that need one: tracing and writing it takes seconds."""

import pytest

from tests.serving import networks
from tf_rnnt_kd.serving.saved_model import export_model


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export_model(networks.transducer(causal=True), networks.tokenizer(), str(folder), model_hash="a-model", beam=2)
    return folder
