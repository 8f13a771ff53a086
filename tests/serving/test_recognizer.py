"""What callers of exports give: transcripts that grow, several hypotheses, and errors by name."""

import itertools

import numpy as np
import pytest
import soundfile

from tests.serving import networks
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.serving.export_folder import METADATA
from tf_rnnt_kd.serving.recognizer import Recognizer, in_chunks, open_recognizer
from tf_rnnt_kd.serving.transcription import find_sources, transcribe_sources


@pytest.fixture(scope="module")
def recognizer(exported):
    return open_recognizer(str(exported))


def test_text_only_grows_and_ends_as_the_offline_transcript(recognizer):
    samples = networks.noise(2.0, seed=3)
    whole = recognizer.transcribe(samples)
    for samples_per_chunk in (1_600, 10_240, 100_000):
        texts = [heard.text for heard in recognizer.stream(in_chunks(samples, samples_per_chunk))]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
        *_, heard = recognizer.stream(in_chunks(samples, samples_per_chunk))
        assert heard.text == texts[-1] == whole.text != ""
        assert heard.frames == whole.frames
        np.testing.assert_allclose(heard.score, whole.score, rtol=1e-4)
        assert [word[:3] for word in heard.words] == [word[:3] for word in whole.words]
    assert recognizer.streaming and recognizer.sample_rate == 16_000


def test_hypotheses_are_different_and_best_first(recognizer):
    first, second = recognizer.nbest(networks.noise(1.0, seed=3))
    assert first.score > second.score and first.labels != second.labels
    assert len(first.labels) == len(first.frames) == len(first.log_probs) > 0


def test_more_hypotheses_than_were_exported_are_refused(recognizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", networks.noise(0.2), 16_000)
    with pytest.raises(UserError, match="searches for 2 hypotheses, not 3: export a SavedModel with --beam 3"):
        transcribe_sources(recognizer, find_sources([str(tmp_path / "a.wav")]), nbest=3, form="json")


def test_empty_audio_has_an_empty_transcript(recognizer):
    empty = np.zeros([0], np.float32)
    *_, heard = recognizer.stream(in_chunks(empty, 1_600))
    assert heard.text == recognizer.transcribe(empty).text == "" and heard.words == []
    assert [(hypothesis.text, hypothesis.score) for hypothesis in recognizer.nbest(empty)] == [("", 0.0)]


def test_bad_samples_are_refused_in_one_line(recognizer):
    samples = networks.noise(0.5)
    samples[3_000] = np.nan
    for listen in (recognizer.transcribe, recognizer.nbest, lambda x: list(recognizer.stream(in_chunks(x, 1_000)))):
        with pytest.raises(UserError, match="samples are not finite"):
            listen(samples)


def test_folder_without_an_export_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="no exported model in .*export the checkpoint"):
        open_recognizer(str(tmp_path))


def test_damaged_export_is_refused_by_name(exported, tmp_path):
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / METADATA).write_bytes((exported / METADATA).read_bytes())
    (tmp_path / "saved_model.pb").write_bytes(b"not a model")
    with pytest.raises(UserError, match="damaged"):
        Recognizer(str(tmp_path))
