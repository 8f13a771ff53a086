"""The export as others use it: in a process that cannot see this package."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.serving import networks
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.files import dump_signed
from tf_rnnt_kd.models.saving import save_model
from tf_rnnt_kd.serving import export_folder, saved_model
from tf_rnnt_kd.serving.export_folder import METADATA, read_metadata
from tf_rnnt_kd.serving.offline_module import OfflineModule
from tf_rnnt_kd.serving.recognizer import Recognizer, open_recognizer
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
    found = read_metadata(str(exported))
    hashes = found.pop("files")
    assert len(found.pop("sha256")) == 64
    assert found == {
        "beam": 2,
        "bytes_per_square_frame": 0,
        "chunk": 1,
        "format": 3,
        "frame_ms": 40,
        "kind": "saved_model",
        "model_hash": "a-model",
        "pieces": networks.PIECES,
        "sample_rate": 16_000,
        "second_pass": False,
        "streaming": True,
        "tokenizer_hash": "a-tokenizer",
    }
    written = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert written - {METADATA, "lineage.json"} == set(hashes) >= {"saved_model.pb", "variables/variables.index"}


@pytest.fixture
def damaged(exported, tmp_path):
    """A copy to spoil."""
    return pathlib.Path(shutil.copytree(exported, tmp_path / "copy"))


def test_a_changed_file_of_an_export_is_refused_by_name(damaged):
    for name in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
        whole = (damaged / name).read_bytes()
        (damaged / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{name} is damaged: its sha256 is not that of the export; delete the"):
            open_recognizer(str(damaged))
        (damaged / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing: delete the folder and export again"):
            open_recognizer(str(damaged))
        (damaged / name).write_bytes(whole)


def test_damaged_metadata_is_one_line_that_names_the_file(damaged):
    path = damaged / METADATA
    text, whole = path.read_text(), json.loads(path.read_text())
    signed = [
        {name: value for name, value in whole.items() if name != "beam"},
        {**whole, "beam": -1},
        {**whole, "frame_ms": 1e30},
        {**whole, "pieces": []},
        {**whole, "streaming": 1},
        {**whole, "kind": "other"},
        {**whole, "files": {"../../secret": "0" * 63}},
        {**whole, "extra": 1},
    ]
    for document in signed:
        document.pop("sha256")
    contents = ["", "[]", "[" * 100_000, "{", text.replace("40", "41"), text.replace('"beam": 2', '"beam": 3')]
    contents += [dump_signed(document).decode() for document in signed]
    for content in contents:
        path.write_text(content)
        with pytest.raises(
            UserError, match=r"metadata\.json is damaged: .*; delete the folder and export again"
        ) as raised:
            open_recognizer(str(damaged))
        assert "\n" not in raised.value.message
    path.write_text(text.replace('"format": 3', '"format": 2'))
    with pytest.raises(UserError, match="metadata.json has format 2, this version reads 3: delete the folder and"):
        open_recognizer(str(damaged))


def test_no_name_in_metadata_leads_out_of_the_folder(damaged):
    whole = json.loads((damaged / METADATA).read_text())
    del whole["sha256"]
    (damaged.parent / "secret").write_text("s")
    for name in ("../secret", str(damaged.parent / "secret")):
        hashes = {**whole["files"], name: hashlib.sha256(b"s").hexdigest()}
        (damaged / METADATA).write_bytes(dump_signed({**whole, "files": hashes}))
        with pytest.raises(UserError, match="secret is missing"):
            open_recognizer(str(damaged))


def test_an_export_loads_from_any_path(exported, tmp_path):
    samples = networks.noise(1.0, seed=3)
    expected = open_recognizer(str(exported)).transcribe(samples).text
    folder = tmp_path / "run [1] é *?" / "lr=1e-3, {a} %d \\"
    shutil.copytree(exported, folder)
    assert open_recognizer(str(folder)).transcribe(samples).text == expected != ""
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


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
    monkeypatch.setattr(export_folder, "find_hash", lambda _: "a-model")
    monkeypatch.setattr(export_folder, "read_description", lambda _: {"architecture": {"encoder": {}}})
    monkeypatch.setattr(saved_model, "load_model", lambda *_, **__: pytest.fail("exported again"))
    return "checkpoint"


def test_export_of_the_same_model_is_left_alone(exported, checkpoint):
    before = sorted(path.stat().st_mtime_ns for path in exported.rglob("*"))
    assert not export_checkpoint(checkpoint, str(exported), beam=2)
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
