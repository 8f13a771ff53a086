"""What SECURITY.md says of data: loading hostile files executes nothing, and writes nothing beside the named folder.

To be extended with every new kind of file that is read.
"""

import contextlib
import json
import os
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from tests import tiny
from tests.serving import networks
from tf_rnnt_kd import files
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.saving import load_language_model, load_model, save_model
from tf_rnnt_kd.serving.export_folder import METADATA
from tf_rnnt_kd.serving.lite_model import LITE_FILE, export_lite_model
from tf_rnnt_kd.serving.recognizer import open_recognizer
from tf_rnnt_kd.text.tokenizer import load_tokenizer


class _Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return os.mkdir, (self._path,)


def _tree(folder):
    """Every file below a folder, with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in pathlib.Path(folder).rglob("*")}


@contextlib.contextmanager
def nothing_happens(folder):
    """What is tried is refused in one line, and no file appears, goes or changes."""
    before = _tree(folder)
    with pytest.raises(UserError) as raised:
        yield
    assert "\n" not in raised.value.message
    assert _tree(folder) == before


@pytest.fixture(scope="module")
def saved(toy_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(tiny.transducer(toy_tokenizer.vocabulary_size), toy_tokenizer, str(folder))
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "model"))


def _sign(path, change):
    document = json.loads(path.read_text())
    document.pop("sha256", None)
    change(document)
    path.write_bytes(files.dump_signed(document))


def test_a_pickle_among_the_weights_is_not_opened(model, tmp_path):
    trap = pickle.dumps(_Trap(tmp_path / "executed"))
    header = np.lib.format.magic(1, 0)
    described = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    array = header + len(described).to_bytes(2, "little") + described + trap
    for content in (trap, array):
        with zipfile.ZipFile(model / "weights.npz", "w") as archive:
            archive.writestr("arr_0.npy", content)
        with nothing_happens(tmp_path):
            load_model(str(model))
    (model / "weights.npz").write_bytes(trap)
    with nothing_happens(tmp_path):
        load_model(str(model))


_OBJECTS = (
    {"module": "builtins", "class_name": "function", "config": "os.system", "registered_name": "function"},
    {"module": "os", "class_name": "system", "config": {"command": "mkdir executed"}, "registered_name": None},
    {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}},
    {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "eval"}, "registered_name": None},
    {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "x"}, "registered_name": None},
    {"module": "keras.utils", "class_name": "get_file", "config": {"origin": "http://192.0.2.1/"}},
)


@pytest.mark.parametrize("value", _OBJECTS, ids=lambda value: value["class_name"])
def test_an_architecture_names_no_objects(model, tmp_path, value, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = (model / "model.json").read_bytes()
    for key in ("dtype", "activity_regularizer", "name", "width"):
        _sign(model / "model.json", lambda document, key=key: document["architecture"]["encoder"].update({key: value}))
        with nothing_happens(tmp_path):
            load_model(str(model))
        (model / "model.json").write_bytes(whole)
    for key in ("dtype", "encoder", "vocabulary_size", "loss"):
        _sign(model / "model.json", lambda document, key=key: document["architecture"].update({key: value}))
        with nothing_happens(tmp_path):
            load_model(str(model))
        (model / "model.json").write_bytes(whole)
    _sign(model / "model.json", lambda document: document.update(kind="language model", architecture={"dtype": value}))
    with nothing_happens(tmp_path):
        load_language_model(str(model))


def test_a_manifest_that_leads_elsewhere_is_refused_and_nothing_is_written(toy_records, tmp_path):
    folder = pathlib.Path(shutil.copytree(toy_records.folder, tmp_path / "records"))
    (tmp_path / "elsewhere").write_text("precious")
    whole = (folder / "manifest.json").read_bytes()
    for name in ("../elsewhere", str(tmp_path / "elsewhere"), "..", ""):
        _sign(folder / "manifest.json", lambda document, name=name: document["shards"][0].update(name=name))
        with nothing_happens(tmp_path):
            list(open_records(str(folder)).read())
        (folder / "manifest.json").write_bytes(whole)


def test_links_at_names_of_temporary_files_are_not_followed(saved, toy_tokenizer, tmp_path):
    precious, folder = tmp_path / "precious", tmp_path / "model"
    precious.write_text("keep")
    folder.mkdir()
    for name in ("weights.npz.tmp", "model.json.tmp", f"weights.npz.{os.getpid()}.tmp"):
        (folder / name).symlink_to(precious)
    save_model(tiny.transducer(toy_tokenizer.vocabulary_size), toy_tokenizer, str(folder))
    assert precious.read_text() == "keep"
    assert load_model(str(folder))[1].hash == toy_tokenizer.hash


def test_a_tokenizer_of_garbage_is_refused(model, tmp_path):
    for path in (model / "tokenizer").iterdir():
        whole = path.read_bytes()
        for content in (b"", b"\x80\x04\x95", pickle.dumps(_Trap(tmp_path / "executed")), b"[" * 100_000):
            path.write_bytes(content)
            with nothing_happens(tmp_path):
                load_tokenizer(str(model / "tokenizer"))
        path.write_bytes(whole)


def test_a_lite_file_of_garbage_is_refused(tmp_path):
    folder = tmp_path / "lite"
    about = {"model_hash": "x", "weights": "float32", "step_frames": 4}
    export_lite_model(networks.transducer(causal=True), networks.tokenizer(), str(folder), **about)
    whole = (folder / LITE_FILE).read_bytes()
    rng = np.random.default_rng(5)
    for content in (b"", b"TFL3", whole[:1000], rng.bytes(5000), whole[:8] + rng.bytes(len(whole) - 8)):
        (folder / LITE_FILE).write_bytes(content)
        with nothing_happens(tmp_path):
            open_recognizer(str(folder))
    for content in (b"", b"[" * 100_000, b'{"format": 3, "kind": "tflite"}', b'{"format": 1e400}'):
        (folder / METADATA).write_bytes(content)
        with nothing_happens(tmp_path):
            open_recognizer(str(folder))
