"""The export as others use it: in a process that cannot see this package."""

import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.serving import networks
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.saving import save_model
from tf_rnnt_kd.serving import saved_model
from tf_rnnt_kd.serving.saved_model import Recognizer, export_checkpoint, export_model, in_chunks
from tf_rnnt_kd.serving.streaming_module import OfflineModule, StreamingModule

_STRANGER = pathlib.Path(__file__).with_name("stranger.py")
_SECONDS = [0.0, 0.02, 0.6, 2.0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export_model(networks.transducer(causal=True), networks.tokenizer(), str(folder), model_hash="a-model")
    return folder


@pytest.fixture(scope="module")
def recognizer(exported):
    return Recognizer(str(exported))


def test_bare_tensorflow_streams_the_offline_text(exported, tmp_path):
    audio = {str(i): networks.noise(seconds, seed=i) for i, seconds in enumerate(_SECONDS)}
    audio["silence"] = np.zeros([16_000], np.float32)
    np.savez(tmp_path / "audio.npz", **audio)
    cuts = {name: networks.random_cuts(len(samples), seed=i) for i, (name, samples) in enumerate(audio.items())}
    (tmp_path / "cuts.json").write_text(json.dumps(cuts))
    finished = subprocess.run(
        [sys.executable, "-I", str(_STRANGER), str(exported), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "texts.json").read_text())
    transcribe = StreamingModule(networks.transducer(causal=True), networks.PIECES).transcribe
    for name, samples in audio.items():
        expected = transcribe(samples[None], [len(samples)])["text"].numpy()[0].decode()
        assert found[name] == {"whole": expected, "stream": expected}
    assert found["0"]["whole"] == found["1"]["whole"] == "" and len(found["3"]["whole"]) > 5


def test_metadata_says_what_the_model_is(exported):
    assert json.loads((exported / "assets.extra" / "metadata.json").read_text()) == {
        "chunk": 1,
        "format": 1,
        "frame_ms": 40,
        "model_hash": "a-model",
        "sample_rate": 16_000,
        "second_pass": False,
        "streaming": True,
        "tokenizer_hash": "a-tokenizer",
    }


def test_export_leaves_nothing_beside_itself(exported):
    assert [path.name for path in exported.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("samples_per_chunk", [1_600, 10_240, 100_000])
def test_text_only_grows_and_ends_as_the_offline_text(recognizer, samples_per_chunk):
    samples = networks.noise(2.0, seed=3)
    texts = list(recognizer.stream(in_chunks(samples, samples_per_chunk)))
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert texts[-1] == recognizer.transcribe(samples) != ""
    assert recognizer.streaming and recognizer.sample_rate == 16_000


def test_empty_audio_has_an_empty_text(recognizer):
    empty = np.zeros([0], np.float32)
    assert list(recognizer.stream(in_chunks(empty, 1_600)))[-1] == recognizer.transcribe(empty) == ""


def test_full_context_export_transcribes_whole_utterances(tmp_path):
    model = networks.transducer(causal=False)
    export_model(model, networks.tokenizer(), str(tmp_path / "model"), model_hash="full")
    recognizer = Recognizer(str(tmp_path / "model"))
    assert not recognizer.streaming
    assert recognizer.transcribe(networks.noise(1.0)) != ""


def test_failed_export_leaves_no_folder(tmp_path, monkeypatch):
    def fill_the_disk(_, folder, **__):
        pathlib.Path(folder).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_model.tf.saved_model, "save", fill_the_disk)
    monkeypatch.setattr(OfflineModule, "signatures", lambda _: {})
    with pytest.raises(OSError, match="space"):
        export_model(networks.transducer(causal=False), networks.tokenizer(), str(tmp_path / "model"), model_hash="x")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def checkpoint(monkeypatch):
    """What `export_checkpoint` reads, without the disk."""
    monkeypatch.setattr(
        saved_model, "read_description", lambda _: {"weights_hash": "a-model", "architecture": {"encoder": {}}}
    )
    monkeypatch.setattr(saved_model, "load_model", lambda *_, **__: pytest.fail("exported again"))
    return "checkpoint"


def test_export_of_the_same_model_is_left_alone(exported, checkpoint):
    before = sorted(path.stat().st_mtime_ns for path in exported.rglob("*"))
    export_checkpoint(checkpoint, str(exported))
    assert sorted(path.stat().st_mtime_ns for path in exported.rglob("*")) == before


def test_export_of_another_chunk_is_refused(exported, checkpoint):
    with pytest.raises(UserError, match="delete it or choose another"):
        export_checkpoint(checkpoint, str(exported), chunk=2)


def test_foreign_folder_is_not_overwritten(tmp_path, checkpoint):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="delete it or choose another"):
        export_checkpoint(checkpoint, str(tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_folder_without_an_export_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="no exported model in .*export the checkpoint"):
        Recognizer(str(tmp_path))


def test_damaged_export_is_refused_by_name(exported, tmp_path):
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "metadata.json").write_bytes((exported / saved_model.METADATA).read_bytes())
    (tmp_path / "saved_model.pb").write_bytes(b"not a model")
    with pytest.raises(UserError, match="damaged"):
        Recognizer(str(tmp_path))


def test_a_cascade_is_exported_in_the_pass_one_asks_for(toy_tokenizer, tmp_path):
    model = tiny.transducer(toy_tokenizer.vocabulary_size, causal=True, second_pass_blocks=1)
    model.joint.kernel.assign(6 * model.joint.kernel.value)
    save_model(model, toy_tokenizer, str(tmp_path / "cascade"))
    export_checkpoint(str(tmp_path / "cascade"), str(tmp_path / "whole"), second_pass=True)
    recognizer, samples = Recognizer(str(tmp_path / "whole")), networks.noise(2.0)
    model.uses_second_pass = True
    expected = OfflineModule(model, toy_tokenizer.pieces).transcribe(samples[None], [len(samples)])["text"]
    assert not recognizer.streaming and recognizer.transcribe(samples) == expected.numpy()[0].decode() != ""
    export_checkpoint(str(tmp_path / "cascade"), str(tmp_path / "whole"), second_pass=True)
    with pytest.raises(UserError, match="is no such export"):
        export_checkpoint(str(tmp_path / "cascade"), str(tmp_path / "whole"))
