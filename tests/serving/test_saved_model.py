"""The export as others use it: in a process that cannot see this package."""

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
from tf_rnnt_kd.serving import export_folder, saved_model
from tf_rnnt_kd.serving.offline_module import OfflineModule
from tf_rnnt_kd.serving.recognizer import Recognizer
from tf_rnnt_kd.serving.saved_model import export_checkpoint, export_model
from tf_rnnt_kd.serving.streaming_module import StreamingModule

_STRANGER = pathlib.Path(__file__).with_name("stranger.py")
_SECONDS = [0.0, 0.02, 0.6, 2.0]


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
        "beam": 2,
        "chunk": 1,
        "format": 2,
        "frame_ms": 40,
        "kind": "saved_model",
        "model_hash": "a-model",
        "pieces": networks.PIECES,
        "sample_rate": 16_000,
        "second_pass": False,
        "streaming": True,
        "tokenizer_hash": "a-tokenizer",
    }


def test_export_leaves_nothing_beside_itself(exported):
    assert [path.name for path in exported.parent.iterdir()] == ["model"]


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
        export_folder, "read_description", lambda _: {"weights_hash": "a-model", "architecture": {"encoder": {}}}
    )
    monkeypatch.setattr(saved_model, "load_model", lambda *_, **__: pytest.fail("exported again"))
    return "checkpoint"


def test_export_of_the_same_model_is_left_alone(exported, checkpoint):
    before = sorted(path.stat().st_mtime_ns for path in exported.rglob("*"))
    export_checkpoint(checkpoint, str(exported), beam=2)
    assert sorted(path.stat().st_mtime_ns for path in exported.rglob("*")) == before


@pytest.mark.parametrize("options", [{"beam": 2, "chunk": 2}, {"beam": 3}])
def test_another_export_of_the_same_model_is_refused(exported, checkpoint, options):
    with pytest.raises(UserError, match="delete it or choose another"):
        export_checkpoint(checkpoint, str(exported), **options)


def test_foreign_folder_is_not_overwritten(tmp_path, checkpoint):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="delete it or choose another"):
        export_checkpoint(checkpoint, str(tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_a_cascade_is_exported_in_the_pass_one_asks_for(toy_tokenizer, tmp_path):
    model = tiny.transducer(toy_tokenizer.vocabulary_size, causal=True, second_pass_blocks=1)
    model.joint.kernel.assign(6 * model.joint.kernel.value)
    save_model(model, toy_tokenizer, str(tmp_path / "cascade"))
    export_checkpoint(str(tmp_path / "cascade"), str(tmp_path / "whole"), second_pass=True)
    recognizer, samples = Recognizer(str(tmp_path / "whole")), networks.noise(2.0)
    model.uses_second_pass = True
    expected = OfflineModule(model, toy_tokenizer.pieces).transcribe(samples[None], [len(samples)])["text"]
    assert not recognizer.streaming and recognizer.transcribe(samples).text == expected.numpy()[0].decode() != ""
    export_checkpoint(str(tmp_path / "cascade"), str(tmp_path / "whole"), second_pass=True)
    with pytest.raises(UserError, match="is no such export"):
        export_checkpoint(str(tmp_path / "cascade"), str(tmp_path / "whole"))
