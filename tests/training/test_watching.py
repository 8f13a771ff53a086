"""What is on TensorBoard's pages, read back from its files."""

import dataclasses
import io
import pathlib
import re
import warnings
from html import unescape

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.plugins.hparams import metadata

from tests import tiny
from tests.workers import ROOT
from tf_rnnt_kd.data.batching import make_schedule
from tf_rnnt_kd.data.schema import Record
from tf_rnnt_kd.evaluation.wer import mark_errors
from tf_rnnt_kd.training.objective import Objective, find_teacher_joint
from tf_rnnt_kd.training.summaries import Summaries, as_markdown
from tf_rnnt_kd.training.watching import Evaluation, Example, Shown, Watch, flatten_settings, make_pictures

PIECES = ["", " ", "A", "B", "C", "D"]
METRICS = ("loss", "transducer", "kl", "kl_per_node", "gradient_norm", "seconds", "skipped")


def read(folder):
    """{tag: [(step, value)]} of all event files."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor) if value.HasField("tensor") else value
                found.setdefault(value.tag, []).append((event.step, content))
    return found


def read_descriptions(folder):
    """{tag: description} of all event files."""
    return {
        value.tag: value.metadata.summary_description
        for path in pathlib.Path(folder).glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }


@pytest.fixture
def watch(work_dir, toy_records, toy_targets):
    sets = [toy_records, toy_targets["factored"]]
    schedule = make_schedule(*([s] for s in sets), tiny.BUCKETS, num_steps=6, labelled_fraction=0.3, seed=2)
    return Watch(str(work_dir), sets, schedule, 0)


def test_reports_have_charts_by_subject_and_a_line(watch, work_dir):
    metrics = {name: np.array([1.0, 2.0]) for name in METRICS}
    metrics["skipped"] = np.array([0.0, 1.0])
    line = watch.report(2, metrics, {"learning_rate": 1e-3})
    assert line.startswith("loss 1.500, KL 1.500 a node, 1 skipped, ") and line.endswith(" audio-h/h")
    watch.evaluated(2, Evaluation({"dev_wer": 12.345}, []), make_pictures(None, Objective(), None, [], Shown()))
    line = watch.report(4, {**metrics, "skipped": np.zeros([2])}, {"learning_rate": 1e-3})
    assert ", dev WER 12.35 %, " in line and "skipped" not in line and "\n" not in line
    found = read(work_dir)
    assert {step for step, _ in found["loss"]} == {2, 4} and found["loss"][0][1] == 1.5
    for tag in ("loss/transducer", "loss/kl", "loss/kl_per_node", "update/gradient_norm", "update/learning_rate"):
        assert len(found[tag]) == 2
    assert found["update/skipped"] == [(2, 1.0), (4, 0.0)] and found["dev_wer"][0] == (2, pytest.approx(12.345))
    assert "seconds" not in found and found["time/audio_hours_per_hour"][0][1] > 0.0
    assert found["input/utterances_factored"][0][1] > found["input/utterances_records"][0][1] > 0
    assert 0.05 < found["memory/host_gigabytes"][0][1] < 100.0


def test_settings_sound_and_features_come_once(watch, work_dir, toy_records):
    records = list(toy_records.read(0, 2))
    settings = flatten_settings(generation="toy", training=tiny.training(4), objective=Objective(teacher_delay=(0, 2)))
    assert settings["training.steps"] == 4 and settings["training.learning_rate.peak"] == 2e-3
    assert settings["objective.teacher_delay"] == "(0, 2)" and settings["training.buckets.batch_seconds"] == 8.0
    assert not any("report_every" in name or "band" in name for name in settings)
    noise = tf.random.stateless_normal([4, 10, 80], [0, 0])
    watch.begin(settings, Shown(records, PIECES), (noise, noise))
    watch.report(1, {name: np.ones([1]) for name in METRICS}, {})
    found = read(work_dir)
    assert metadata.SESSION_START_INFO_TAG in found
    assert {"features/before", "features/after_spec_augment"} <= set(found)
    for record in records:
        ((step, (sound, *_)),) = [(s, np.ravel(c)) for s, c in found[f"audio/{record.id}"]]
        samples, rate = tf.audio.decode_wav(sound)
        assert step == 0 and rate == 16_000
        np.testing.assert_allclose(samples[:, 0] * 32768.0, record.samples, atol=1.5)


def test_pictures_are_of_the_same_utterances_at_every_evaluation(watch, work_dir, toy_targets, toy_records):
    model = tiny.transducer()
    objective, sets = Objective(kl_weight=0.1), [toy_records, toy_targets["factored"]]
    shown = Shown(list(toy_records.read(0, 4)), PIECES)
    joint = find_teacher_joint(sets, model)
    for step in (10, 20):
        pictures = make_pictures(model, objective, joint, sets, shown)
        rows = [Example("A|1", 50.0, *mark_errors("A B", "A"))]
        watch.evaluated(step, Evaluation({"dev_wer": 3.0}, rows), pictures)
    found = read(work_dir)
    ids = [record.id for record in toy_targets["factored"].read(0, 2)]
    assert {tag for tag in found if "/" in tag} == {f"{kind}/{i}" for kind in ("lattice", "alignment") for i in ids}
    for tag in [tag for tag in found if "/" in tag]:
        assert [step for step, _ in found[tag]] == [10, 20]
        width, height, png = np.ravel(found[tag][0][1])
        assert Image.open(io.BytesIO(png)).convert("RGB").size == (int(width), int(height))
    (text,) = np.ravel(found["hypotheses"][0][1])
    assert text.decode().splitlines()[2:] == ["| A&#124;1 | 50&#46;0 | A B\u0336 | A |"]


def test_development_is_drawn_where_no_records_teach(toy_records):
    records = list(toy_records.read(0, 4))
    pictures = make_pictures(tiny.transducer(), Objective(), None, [toy_records], Shown(records, PIECES))
    assert [record.id for record in pictures._records] == [record.id for record in records[:2]]
    assert list(make_pictures(None, Objective(), None, [toy_records], Shown()).draw(1)) == []


def test_who_has_no_folder_writes_nothing(work_dir, toy_records, monkeypatch):
    monkeypatch.chdir(work_dir)
    schedule = make_schedule([toy_records], [], tiny.BUCKETS, num_steps=6, labelled_fraction=1.0, seed=2)
    watch = Watch(None, [toy_records], schedule, 0)
    watch.report(1, {name: np.ones([1]) for name in METRICS}, {})
    assert list(work_dir.iterdir()) == []


def test_errors_are_marked_and_no_text_is_taken_for_a_mark():
    said, heard = mark_errors("A B* C", "A X C _D_")
    assert as_markdown(said) == "A **B&#42;** C"
    assert as_markdown(heard) == "A **X** C *+&#95;D&#95;*"
    assert as_markdown([("AB", "delete")]) == "A\u0336B\u0336"
    assert as_markdown("a|b <i> É's") == "a&#124;b &#60;i&#62; É&#39;s"


HOSTILE = (
    "![x](https://192.0.2.1/beacon.png)",
    "[click](javascript:alert(1))",
    "<https://192.0.2.1/>",
    "https://192.0.2.1/a",
    "<img src=//192.0.2.1/x onerror=alert(1)><script>alert(1)</script>",
    "`code`",
    "    indented",
    "a | b | c",
    "one\n\n# two\n- three\n1. four",
    "[ref]\n\n[ref]: https://192.0.2.1 'x'",
    "**bold** _soft_ ~~gone~~ &lt;b&gt; \\* line\u2028break",
)
_SHOWN_TAGS = {"p", "table", "thead", "tbody", "tr", "th", "td", "strong", "em"}  # what a table and marks consist of


def _read_html(markdown):
    """The tags of a text as TensorBoard shows it, and what can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library inside TensorBoard
        from tensorboard.plugin_util import markdown_to_safe_html
    html = markdown_to_safe_html(markdown)
    tags = {found.lower() for found in re.findall(r"<\s*/?\s*([a-zA-Z0-9]+)", html)}
    return tags, " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_texts_of_any_kind_are_shown_as_they_are(work_dir):
    summaries = Summaries(str(work_dir))
    for i, text in enumerate(HOSTILE):
        summaries.write_audio(0, f"audio/{i}", np.ones([7], np.int16), text)
        rows = [(text, [(text, kind) for kind in ("equal", "substitute", "insert")])]
        summaries.write_table(0, f"table/{i}", (text, "header"), rows)
    summaries.write_numbers(0, {})
    found, descriptions = read(work_dir), read_descriptions(work_dir)
    for i, text in enumerate(HOSTILE):
        plain = " ".join(text.split())
        assert _read_html(descriptions[f"audio/{i}"]) == ({"p"}, plain)
        tags, shown = _read_html(np.ravel(found[f"table/{i}"][0][1])[0])
        assert tags <= _SHOWN_TAGS
        assert shown == f"{plain} header {plain} {plain} {plain} +{plain}"


def test_only_one_module_writes_texts_for_tensorboard():
    sources = {path: path.read_text() for path in (ROOT / "tf_rnnt_kd").rglob("*.py")}
    writers = [path.name for path, text in sources.items() if re.search(r"summary\.text|description=", text)]
    assert writers == ["summaries.py"]


def test_sound_of_any_length_is_written(work_dir):
    summaries = Summaries(str(work_dir))
    record = Record("x", "", "SAID", np.zeros([0], np.int16), np.zeros([0], np.int32))
    summaries.write_audio(0, "audio/x", record.samples, record.text)
    summaries.write_audio(0, "audio/y", dataclasses.replace(record, samples=np.ones([7], np.int16)).samples, "")
    summaries.write_numbers(1, {})
    assert set(read(work_dir)) == {"audio/x", "audio/y"}
