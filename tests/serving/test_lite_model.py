"""The TFLite file: builtin operations only, and the text of the network that it was made from."""

import numpy as np
import pytest

from tests.serving import networks
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.serving import export_folder, lite_model
from tf_rnnt_kd.serving.export_folder import METADATA
from tf_rnnt_kd.serving.lite_model import LITE_FILE, export_lite_checkpoint, export_lite_model
from tf_rnnt_kd.serving.offline_module import OfflineModule
from tf_rnnt_kd.serving.recognizer import LiteRecognizer, Recognizer, in_chunks, open_recognizer


def _export(folder, weights, step_frames, **options):
    model = networks.transducer(causal=True, **options)
    export_lite_model(
        model, networks.tokenizer(), str(folder), model_hash="a-model", weights=weights, step_frames=step_frames
    )
    return model, open_recognizer(str(folder))


@pytest.fixture(scope="module", params=[(1, 4), (3, 3)], ids="chunk{0[0]}".format)
def exported(request, tmp_path_factory):
    """The folder, its model and its caller."""
    chunk, step_frames = request.param
    folder = tmp_path_factory.mktemp("lite") / "model"
    return folder, *_export(folder, "float32", step_frames, chunk=chunk)


def test_random_chunks_give_the_offline_transcript(exported):
    _, model, recognizer = exported
    transcribe = OfflineModule(model, networks.PIECES).transcribe
    for seed, seconds in enumerate([2.3, 1.1, 0.02, 0.0, 0.055, 0.12]):
        samples = networks.noise(seconds, seed)
        whole = transcribe(samples[None], [len(samples)])
        cuts = networks.random_cuts(len(samples), seed)
        *_, heard = recognizer.stream(samples[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True))
        assert heard.text == whole["text"].numpy()[0].decode() == recognizer.transcribe(samples).text
        assert heard.frames == whole["frames"][0].numpy().tolist()
        np.testing.assert_allclose(heard.log_probs, whole["label_log_probs"][0], atol=1e-3)
        assert seed or len(heard.text) > 5


def test_a_second_stream_begins_anew(exported):
    _, _, recognizer = exported
    first, second = networks.noise(1.0, seed=1), networks.noise(1.0, seed=2)
    expected = recognizer.transcribe(second).text
    recognizer.transcribe(first)
    assert recognizer.transcribe(second).text == expected != recognizer.transcribe(first).text


def test_bad_samples_are_refused(exported):
    _, _, recognizer = exported
    for value, words in ((np.inf, "samples are not finite"), (1e20, "reach beyond 8"), (-8.5, "reach beyond 8")):
        with pytest.raises(UserError, match=words):
            list(recognizer.stream(in_chunks(np.full([2_000], value, np.float32), 500)))


@pytest.mark.parametrize("exported", [(1, 4)], indirect=True, ids=[""])
def test_a_state_that_is_not_finite_is_told_by_the_file_and_refused_by_its_caller(exported, monkeypatch):
    _, _, recognizer = exported
    state = recognizer._initial_state()
    heard = {"samples": networks.noise(1.0)[None, : 4 * 640 + 240], "num_frames": np.array([4], np.int32)}
    for name, tensor in state.items():
        for value in (np.nan, np.inf, -np.inf) if tensor.dtype == np.float32 else ():
            spoiled = tensor.copy()
            spoiled.flat[-1] = value
            try:
                outputs = recognizer._step(**heard, **{**state, name: spoiled})
            except RuntimeError as error:  # by NaN a label is found that there is not
                assert "index out of bounds" in str(error)
            else:
                assert not outputs["finite"][0]
    assert recognizer._step(**heard, **state)["finite"][0]
    monkeypatch.setattr(recognizer, "_initial_state", lambda: {**state, "predicted": state["predicted"] * np.nan})
    with pytest.raises(UserError, match="features, scores or state are not finite"):
        list(recognizer.stream([networks.noise(1.0)]))


@pytest.mark.parametrize("exported", [(1, 4)], indirect=True, ids=[""])
def test_int8_weights_are_smaller_and_hear_something_near(exported, tmp_path):
    folder, _, recognizer = exported
    _, quantized = _export(tmp_path / "int8", "int8", 4)
    assert (tmp_path / "int8" / LITE_FILE).stat().st_size < (folder / LITE_FILE).stat().st_size
    samples = networks.noise(0.6, seed=1)
    scores = [caller.transcribe(samples).score for caller in (quantized, recognizer)]
    assert scores[0] != scores[1]
    np.testing.assert_allclose(*scores, rtol=0.3)  # random weights: a path that has left another goes its own way


def test_an_export_is_left_alone_and_others_are_refused(exported, monkeypatch):
    folder, model, _ = exported
    description = {"weights_hash": "a-model", "architecture": {"encoder": {"chunk": model.encoder.chunk}}}
    monkeypatch.setattr(export_folder, "find_hash", lambda _: "a-model")
    monkeypatch.setattr(export_folder, "read_description", lambda _: description)
    monkeypatch.setattr(lite_model, "load_model", lambda *_, **__: pytest.fail("exported again"))
    step_frames = 4 if model.encoder.chunk == 1 else 3
    export_lite_checkpoint("checkpoint", str(folder), step_frames=step_frames)
    for other in ({"weights": "int8", "step_frames": step_frames}, {"step_frames": 6}):
        with pytest.raises(UserError, match="delete it or choose another"):
            export_lite_checkpoint("checkpoint", str(folder), **other)


def test_what_cannot_be_streamed_in_steps_is_refused(tmp_path):
    for model, message in (
        (networks.transducer(causal=False), "full context does not stream"),
        (networks.transducer(causal=True, chunk=3), "a step of 4 frames does not hold whole chunks of 3"),
    ):
        with pytest.raises(UserError, match=message):
            export_lite_model(
                model, networks.tokenizer(), str(tmp_path / "x"), model_hash="x", weights="int8", step_frames=4
            )
    assert list(tmp_path.iterdir()) == []


def test_each_caller_refuses_the_other_kind_and_damage(exported, tmp_path):
    folder, _, _ = exported
    with pytest.raises(UserError, match="holds an export of kind tflite, not saved_model"):
        Recognizer(str(folder))
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / METADATA).write_bytes((folder / METADATA).read_bytes())
    for content in (None, b"not a model"):
        if content:
            (tmp_path / LITE_FILE).write_bytes(content)
        with pytest.raises(UserError, match="damaged" if content else f"{LITE_FILE} is missing"):
            LiteRecognizer(str(tmp_path))
