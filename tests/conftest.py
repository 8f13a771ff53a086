"""What every test runs under: few threads, fixed seeds, its own folder."""

import os
import pathlib
import sys
import time

import numpy as np
import pytest

# Before TensorFlow is imported, and inherited by the processes that tests start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_collection_modifyitems(items):
    """The longest files first, so that with two processes the other one does not wait for them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_chain.py", "test_topologies.py"))


def pytest_terminal_summary(terminalreporter):
    """Tables that tests have recorded, as that of the fuzzers, whose counts somebody should see."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            terminalreporter.section(name)
            terminalreporter.line(value)


@pytest.fixture(autouse=True)
def fixed_seeds():
    np.random.seed(0)
    if "keras" in sys.modules:  # Tests of the house need no TensorFlow: do not make them wait for it.
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture
def work_dir(tmp_path) -> pathlib.Path:
    """A folder for one test's records and runs, away from the checkout."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def corpus_dir() -> pathlib.Path:
    """The folder of real speech, for tests marked `corpus`."""
    folder = os.environ.get("TF_RNNT_KD_CORPUS", "")
    if not os.path.isdir(folder):
        pytest.skip("TF_RNNT_KD_CORPUS does not name a folder of speech in LibriSpeech layout")
    return pathlib.Path(folder)


# Imported inside: tests that need no TensorFlow do not wait for it.


@pytest.fixture(scope="session")
def toy_tokenizer(tmp_path_factory):
    """The tokenizer of the toy language."""
    from tests import tiny

    return tiny.tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer")


@pytest.fixture(scope="session")
def toy_records(tmp_path_factory, toy_tokenizer):
    """Twenty utterances of the toy language with human transcripts, in three shards."""
    from tests import tiny, toy

    folder = tmp_path_factory.mktemp("toy") / "records"
    return tiny.write_set(folder, toy_tokenizer, toy.tone_utterances(num_utterances=20, seed=1))


@pytest.fixture(scope="session")
def toy_teacher(toy_tokenizer):
    """An untrained teacher with something to say; tests may not change it."""
    from tests import tiny

    return tiny.talkative(toy_tokenizer.vocabulary_size)


@pytest.fixture(scope="session")
def toy_targets(tmp_path_factory, toy_teacher, toy_tokenizer, toy_records):
    """What the teacher makes of the records, by codec: `factored` in float32 and `lattice` in float16."""
    from tf_rnnt_kd.labelling.records import label_records

    folder = tmp_path_factory.mktemp("targets")
    return {
        codec: label_records(
            toy_teacher, toy_tokenizer, "f" * 64, toy_records, str(folder / codec), codec=codec, dtype=dtype
        )
        for codec, dtype in (("factored", "float32"), ("lattice", "float16"))
    }


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set: clock.now, in seconds."""

    class Clock:
        now = 1_000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock
