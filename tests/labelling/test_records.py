import os

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny, toy
from tf_rnnt_kd.data import schema
from tf_rnnt_kd.data.batching import make_schedule
from tf_rnnt_kd.data.record_writer import write_records
from tf_rnnt_kd.decoding.offline import pad_audio, recognize
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import log_mel
from tf_rnnt_kd.labelling import records as labelling
from tf_rnnt_kd.labelling.records import label_folder, label_records
from tf_rnnt_kd.models.saving import save_model


@pytest.fixture(scope="module")
def live(toy_teacher):
    """The teacher's lattice of a record, computed anew from its audio alone: [T, U+1, V]."""

    @tf.function(input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None], tf.int32)], autograph=False)
    def logits(samples, labels):
        features = log_mel(samples[None])
        whole = tf.shape(features)[1] // 4 * 4
        encoded, _ = toy_teacher.encode(features[:, :whole], whole[None])
        return toy_teacher.join(encoded[:, :, None], toy_teacher.predict_labels(labels[None])[:, None])[0]

    return lambda record: logits(record.samples / 32768.0, record.labels).numpy()


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def in_small_shards(monkeypatch):
    monkeypatch.setattr(labelling, "_SHARD_UTTERANCES", 8)


@pytest.fixture
def labelled_ids(monkeypatch):
    """How many utterances each call of the labeller got."""
    calls = []

    def make_labeller(model):
        label = original(model)
        return lambda audio: (calls.append(len(audio)), label(audio))[1]

    original = labelling.make_labeller
    monkeypatch.setattr(labelling, "make_labeller", make_labeller)
    return calls


def test_audio_and_names_are_kept_and_the_hypothesis_takes_the_transcripts_place(
    toy_records, toy_targets, toy_tokenizer
):
    for old, new in zip(toy_records.read(), toy_targets["factored"].read(), strict=True):
        assert (new.id, new.speaker) == (old.id, old.speaker)
        np.testing.assert_array_equal(new.samples, old.samples)
        assert new.source == schema.TEACHER_HYPOTHESIS and new.score < 0.0
        assert new.text == toy_tokenizer.decode(new.labels.tolist())
    texts = {record.text for record in toy_targets["factored"].read()}
    assert len(texts) > 5 and texts != {record.text for record in toy_records.read()}


def test_the_lattice_from_factored_targets_equals_the_live_teachers(live, toy_targets):
    records = toy_targets["factored"]
    for record in records.read():
        stored = np.tanh(record.encoded[:, None] + record.predicted[None]) @ records.kernel + records.bias
        expected = live(record)
        assert stored.shape == expected.shape
        np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-4)


def test_the_stored_lattice_equals_the_live_teachers_within_half_precision(live, toy_targets):
    for record in toy_targets["lattice"].read():
        expected = live(record)
        assert record.logits.dtype == np.float16 and record.logits.shape == expected.shape
        np.testing.assert_allclose(record.logits.astype(np.float32), expected, rtol=1e-3, atol=1e-3)


def test_both_codecs_hold_the_same_transcripts(toy_targets):
    for ours, theirs in zip(toy_targets["factored"].read(), toy_targets["lattice"].read(), strict=True):
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_the_manifest_says_who_labelled_what_and_what_the_codec_loses(toy_records, toy_targets):
    factored, lattice = (toy_targets[codec].manifest for codec in ("factored", "lattice"))
    assert factored["codec_kl"] == 0.0
    assert 0.0 < lattice["codec_kl"] < 1e-5
    assert factored["source"] == {"records": toy_records.hash, "teacher": "f" * 64, "search": "greedy"}
    assert toy_targets["factored"].targets == schema.TargetsSpec("factored", "float32", 12, 6, 0, "f" * 64, 40)
    assert toy_targets["lattice"].targets == schema.TargetsSpec("lattice", "float16", 0, 6, 0, "f" * 64, 40)


def test_transcripts_alone_carry_no_targets(toy_teacher, toy_tokenizer, toy_records, toy_targets, work_dir):
    hard = label_records(toy_teacher, toy_tokenizer, "f" * 64, toy_records, str(work_dir / "hard"))
    assert hard.targets is None and hard.manifest["codec_kl"] is None
    for ours, theirs in zip(hard.read(), toy_targets["factored"].read(), strict=True):
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.encoded is None and ours.logits is None


def test_the_order_of_records_does_not_depend_on_how_they_are_batched(
    toy_teacher, toy_tokenizer, toy_records, toy_targets, work_dir, monkeypatch, labelled_ids
):
    monkeypatch.setattr(labelling, "_BATCH_SAMPLES", 60_000)
    again = label_records(toy_teacher, toy_tokenizer, "f" * 64, toy_records, str(work_dir / "again"), codec="factored")
    assert sum(labelled_ids) == 4 + 20 and max(labelled_ids) < 10
    for ours, theirs in zip(again.read(), toy_targets["factored"].read(), strict=True):
        assert ours.id == theirs.id
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_allclose(ours.encoded, theirs.encoded, atol=1e-4)


def test_a_restart_redoes_only_what_is_missing(
    toy_teacher, toy_tokenizer, toy_records, work_dir, in_small_shards, labelled_ids
):
    def label(name, on_progress=None):
        arguments = (toy_teacher, toy_tokenizer, "f" * 64, toy_records, str(work_dir / name))
        return label_records(*arguments, codec="factored", on_progress=on_progress)

    def stop(done, total):
        assert (done, total) == (8, 20)
        raise KeyboardInterrupt

    label("undisturbed")
    with pytest.raises(KeyboardInterrupt):
        label("stopped", stop)
    first = next(name for name in sorted(os.listdir(work_dir / "stopped")) if name.endswith(".tfrecord"))
    written = os.stat(work_dir / "stopped" / first).st_mtime_ns
    labelled_ids.clear()
    label("stopped")
    assert sum(labelled_ids) - labelling._ERROR_UTTERANCES == 12
    assert os.stat(work_dir / "stopped" / first).st_mtime_ns == written
    assert content(work_dir / "stopped") == content(work_dir / "undisturbed")


def test_a_folder_of_another_teacher_is_refused(toy_teacher, toy_tokenizer, toy_records, work_dir):
    label_records(toy_teacher, toy_tokenizer, "f" * 64, toy_records, str(work_dir / "set"))
    with pytest.raises(UserError, match=r"set was begun with other settings \(source"):
        label_records(toy_teacher, toy_tokenizer, "e" * 64, toy_records, str(work_dir / "set"))


def test_empty_hypotheses_are_kept_with_their_targets_and_skipped_in_training(toy_tokenizer, toy_records, work_dir):
    silent = tiny.transducer(toy_tokenizer.vocabulary_size)
    silent.joint.bias.assign([50.0, 0, 0, 0, 0, 0])
    for codec in ("factored", "lattice"):
        folder = str(work_dir / codec)
        records = label_records(silent, toy_tokenizer, "f" * 64, toy_records, folder, codec=codec)
        assert np.all(records.index.num_labels == 0) and records.num_utterances == 20
        for record in records.read():
            assert record.text == "" and len(record.labels) == 0
            stored = record.logits if codec == "lattice" else record.predicted
            assert stored.shape[-2] == 1
        schedule = make_schedule([toy_records, records], [], tiny.BUCKETS, num_steps=1, labelled_fraction=1.0, seed=0)
        assert schedule.skipped == {"no labels": 20}


def test_audio_too_short_for_a_frame_does_not_stop_the_rest(toy_teacher, toy_tokenizer, work_dir):
    samples = [toy.tone_utterances(num_utterances=1, seed=5)[0].load(), np.ones(300, np.int16), np.zeros(0, np.int16)]
    items = [schema.Record(f"u{i}", "", "", s, np.zeros(0, np.int32)) for i, s in enumerate(samples)]
    manifest = {"tokenizer_hash": None, "sample_rate": 16_000, "targets": None, "source": "short"}
    audio = write_records(str(work_dir / "audio"), items, lambda part: part, manifest=manifest, records_per_shard=8)
    for codec in ("factored", "lattice"):
        folder = str(work_dir / codec)
        labelled = label_records(toy_teacher, toy_tokenizer, "f" * 64, audio, folder, codec=codec)
        assert labelled.num_utterances == 3
        assert labelled.index.num_labels[1:].tolist() == [0, 0]


def test_a_checkpoint_labels_a_folder(toy_teacher, toy_tokenizer, toy_records, toy_targets, work_dir, capsys):
    teacher_hash = save_model(toy_teacher, toy_tokenizer, str(work_dir / "teacher"))
    labelled = label_folder(
        str(work_dir / "teacher"), toy_records.folder, str(work_dir / "set"), codec="factored", dtype="bfloat16"
    )
    assert labelled.targets.teacher_hash == teacher_hash and labelled.targets.dtype == "bfloat16"
    assert 0.0 < labelled.manifest["codec_kl"] < 1e-2
    for ours, theirs in zip(labelled.read(), toy_targets["factored"].read(), strict=True):
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.encoded.dtype == tf.bfloat16.as_numpy_dtype
    assert "labelled 20 utterances" in capsys.readouterr().out


def test_a_cascade_labels_by_its_second_pass(toy_tokenizer, toy_records, work_dir):
    model = tiny.transducer(toy_tokenizer.vocabulary_size, causal=True, second_pass_blocks=1)
    save_model(model, toy_tokenizer, str(work_dir / "teacher"))
    folder = str(work_dir / "set")
    record = next(label_folder(str(work_dir / "teacher"), toy_records.folder, folder, codec="factored").read())
    samples, num_samples = pad_audio([record.samples])
    first, model.uses_second_pass = recognize(model, samples, num_samples).encoded, True
    second = recognize(model, samples, num_samples).encoded
    np.testing.assert_allclose(record.encoded, second[0], atol=1e-4)
    assert np.abs(record.encoded - first[0]).max() > 0.1
