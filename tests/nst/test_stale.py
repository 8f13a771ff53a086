"""The stale matrix: for each pair of an artefact and an input that changed, it is told, and nothing is mixed."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from tests.nst.test_run import corpus, go, make_plan
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.decode import evaluate_checkpoint
from tf_rnnt_kd.files import dump_signed
from tf_rnnt_kd.labelling.records import label_folder
from tf_rnnt_kd.lineage import lineage_path, read_lineage
from tf_rnnt_kd.models.saving import find_hash, load_model, save_model
from tf_rnnt_kd.nst import run
from tf_rnnt_kd.nst.explanation import explain
from tf_rnnt_kd.nst.plan import TokenizerSpec
from tf_rnnt_kd.serving.lite_model import export_lite_checkpoint
from tf_rnnt_kd.serving.saved_model import export_checkpoint

LABELS = "seed-0/teacher/labels/audio-factored"

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(finished, work_dir):
    """A copy of the finished run, to be spoilt."""
    shutil.rmtree(work_dir)
    shutil.copytree(finished[0], work_dir)
    return work_dir


def with_corpus(name, **changes):
    """The plan, with other utterances in one corpus."""
    plan = make_plan()
    number = [c.name for c in plan.corpora].index(name)
    listed = plan.corpora[number].utterances()
    first = dataclasses.replace(listed[0], **changes)
    changed = dataclasses.replace(plan.corpora[number], utterances=lambda: [first, *listed[1:]])
    return dataclasses.replace(plan, corpora=[*plan.corpora[:number], changed, *plan.corpora[number + 1 :]])


def with_other_weights(folder):
    """Another trained model in the folder, as `train` or a copy would leave it."""
    model, tokenizer = load_model(str(folder))
    model.weights[0].assign(model.weights[0] + 1.0)
    save_model(model, tokenizer, str(folder))


def with_other_shard(folder):
    """Records of other content, whole in themselves: the manifest vouches for them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["shards"][0]["sha256"] = "0" * 64
    (folder / "manifest.json").write_bytes(dump_signed(manifest))


def refusal(work_dir, plan=None):
    with pytest.raises(UserError) as caught:
        go(work_dir, plan)
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("audio", {"id": "another"}, "records/audio (ids was"),
        ("audio", {"source": "edited"}, "records/audio (audio was"),
        ("dev", {"text": "DAB DAB DAB"}, "records/dev (transcripts was"),
        ("train", {"text": "DAB DAB DAB"}, "records/tokenizer (transcripts train was"),
        ("train", {"text": "DAB DAB DAB"}, "records/train (transcripts was"),
        ("train", {"speaker": "another"}, "records/train (ids was"),
    ],
)
def test_a_corpus_that_was_edited(copy, name, changes, told):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.tfrecord")}
    assert told in refusal(copy, with_corpus(name, **changes))
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.tfrecord")} == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer": TokenizerSpec("unigram", ("train",), 12)}, "records/tokenizer (kind was characters, is unigram"),
        ({"records_per_shard": 5}, "records/train (records_per_shard was 8, is 5)"),
        ({"corpora": [corpus(*a) for a in (("train", 9, 1), ("audio", 12, 2, False), ("dev", 2, 3), ("test", 3, 4))]},
         "records/train (utterances was 12, is 9"),
    ],
)  # fmt: skip
def test_a_plan_that_prepares_otherwise(copy, changes, told):
    assert told in refusal(copy, dataclasses.replace(make_plan(), **changes))


@pytest.mark.parametrize(
    ("spoil", "path", "stale"),
    [
        (with_other_weights, "seed-0/teacher", ["seed-0/teacher", LABELS, "seed-0/student",
                                                "seed-0/teacher/results.json"]),
        (with_other_shard, "records/audio", ["records/audio", LABELS, "seed-0/student"]),
        (with_other_shard, "records/train", ["records/train", "seed-0/teacher", "seed-0/student"]),
        (with_other_shard, "records/test", ["records/test", "seed-0/teacher/results.json",
                                            "seed-0/student/results.json"]),
        (with_other_shard, LABELS, [LABELS]),
        (shutil.rmtree, "seed-0/teacher", ["seed-0/student"]),
        (with_other_weights, "seed-0/student", ["seed-0/student", "seed-0/student/results.json",
                                                "seed-0/student/second_pass/results.json"]),
        (lambda path: path.write_text("{}"), "seed-0/student/results.json", ["seed-0/student/results.json"]),
    ],
)  # fmt: skip
def test_an_artefact_that_was_replaced_outdates_all_that_was_made_from_it(copy, spoil, path, stale):
    spoil(copy / path)
    message, explained = refusal(copy), explain(str(copy))
    for artefact in stale:
        assert f"{copy / artefact} (" in message or artefact.startswith("records"), artefact
        assert f"no longer fits: {copy / artefact}: " in explained, artefact


def test_what_commands_made_elsewhere_is_explained_too(copy, tmp_path):
    teacher, student = str(copy / "seed-0/teacher"), str(copy / "seed-0/student")
    records = str(copy / "records/audio")
    made = [str(tmp_path / name) for name in ("labels", "savedmodel", "tflite", "results.json")]
    label_folder(teacher, records, made[0], codec="lattice", dtype="float16")
    export_checkpoint(teacher, made[1])
    export_lite_checkpoint(student, made[2], step_frames=4)
    evaluate_checkpoint(teacher, [str(copy / "records/test")], made[3])
    for path in made:
        assert explain(path).endswith("everything fits what it was made from"), path
    with_other_weights(copy / "seed-0/teacher")
    with_other_weights(copy / "seed-0/student")
    for path in made:
        assert f"no longer fits: {path}: {'teacher' if path == made[0] else 'model'} was" in explain(path), path
    with pytest.raises(UserError, match="labels .teacher was"):
        label_folder(teacher, records, made[0], codec="lattice", dtype="float16")
    for other in ({"dtype": "float32"}, {"codec": "factored"}, {"features": "uint8"}):
        with pytest.raises(UserError, match=f"{next(iter(other))} was"):
            label_folder(teacher, records, made[0], **{"codec": "lattice", "dtype": "float16", **other})
    label_folder(teacher, records, made[0], codec="factored", remake=True)
    assert f"no longer fits: {made[0]}" not in explain(made[0])


def test_what_is_not_touched_fits(finished):
    explained = explain(str(finished[0]))
    assert explained.endswith("everything fits what it was made from")
    assert "no longer" not in explained.lower()
    teacher = read_lineage(str(finished[0] / LABELS)).inputs["teacher"]
    assert teacher == find_hash(str(finished[0] / "seed-0/teacher")) and teacher[:12] in explained


def test_only_remake_makes_again_what_no_longer_fits_and_all_that_follows(copy, capsys):
    with_other_weights(copy / "seed-0/teacher")
    before = find_hash(str(copy / "seed-0/student"))
    report = go(copy, remake=True)
    assert "teacher is made again: it was" in capsys.readouterr().out
    # Trained as the first time, to the bit: so the student fits again, and stays.
    assert find_hash(str(copy / "seed-0/student")) == before and (copy / "seed-0/teacher.stale-1/weights.npz").exists()
    assert explain(str(copy)).endswith("everything fits what it was made from")
    assert go(copy) == report


def test_other_data_under_the_same_names_is_trained_on_anew(copy):
    plan = with_corpus("audio", id="another", source="edited", load=lambda: np.ones(12_000, np.int16))
    go(copy, plan, remake=True)
    assert (copy / "seed-0/student.stale-1").exists() and not (copy / "seed-0/teacher.stale-1").exists()
    go(copy, plan)


def test_a_training_on_the_way_does_not_go_on_with_other_data(work_dir, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        go(work_dir)
    with_other_shard(work_dir / "records/train")
    assert f"{work_dir}/seed-0/teacher (labelled train was" in refusal(work_dir)


def test_data_that_is_not_looked_at_counts_as_it_was(copy):
    plan = with_corpus("audio", source="edited")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with pytest.raises(UserError, match="records/audio .audio was"):
        run.check_fits(run.Start(plan, str(copy)))
    run.check_fits(run.Start(plan, str(copy), look=False))
    run.check_fits(run.Start(plan, str(copy), remake=True))
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_damaged_lineage_is_refused_by_name(copy):
    path = lineage_path(str(copy / LABELS))
    content = (copy / LABELS / "lineage.json").read_bytes()
    for damaged in (content.replace(b"factored", b"lattices"), b"{}", b"[" * 100_000, content[:-5]):
        with open(path, "wb") as file:
            file.write(damaged)
        assert path in refusal(copy)
    os.remove(path)
    assert "has no lineage" in refusal(copy)


def test_two_students_that_want_other_dtypes_have_two_label_sets():
    plan = make_plan()
    student = plan.generations[1]
    other = dataclasses.replace(student, name="other", targets_dtype="bfloat16")
    plan = dataclasses.replace(plan, generations=[*plan.generations, other], comparisons=())
    names = [label_set.name for g in plan.generations[1:] for label_set in plan.label_sets(g)]
    assert names == ["audio-factored", "audio-factored-bfloat16"]


def test_a_folder_of_something_else_is_never_removed(copy):
    shutil.rmtree(copy / "records/audio")
    (copy / "records/audio").mkdir()
    (copy / "records/audio/recording.flac").write_bytes(b"not to be made again")
    with pytest.raises(UserError, match="records/audio is no record set, and what is in it stays"):
        go(copy, remake=True)
    assert (copy / "records/audio/recording.flac").exists()
