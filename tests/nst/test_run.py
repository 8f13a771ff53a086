import dataclasses
import functools
import json

import pytest

from tests import tiny
from tests.toy import tone_utterances
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst import run
from tf_rnnt_kd.nst.jobs import find_job
from tf_rnnt_kd.nst.plan import Corpus, Generation, Plan, TokenizerSpec
from tf_rnnt_kd.nst.preparation import prepare
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.strategy import make_strategy

ROWS = ("teacher", "student", "student/second_pass")
SETS = ("records/train", "records/audio", "records/dev", "seed-0/teacher/labels/audio-factored")


def corpus(name, count, seed, labelled=True):
    return Corpus(name, functools.partial(tone_utterances, num_utterances=count, seed=seed), labelled)


def make_plan():
    """A teacher of a few steps and a cascade that learns from its lattices, on a few utterances each."""
    # Too slow to learn: the teacher has to keep something to say.
    training = tiny.training(4, rate_steps=4, peak=1e-6, labelled_fraction=0.3, report_every=2)
    common = {"training": training, "labelled": ("train",)}
    return Plan(
        name="toy",
        corpora=[corpus("train", 12, 1), corpus("audio", 12, 2, False), corpus("dev", 2, 3), corpus("test", 3, 4)],
        tokenizer=TokenizerSpec("characters", ("train",)),
        generations=[
            Generation("teacher", tiny.talkative, Objective(), **common),
            Generation(
                "student",
                functools.partial(tiny.transducer, causal=True, second_pass_blocks=1),
                CascadedObjective(Objective(kl_weight=0.01), Objective(kl_weight=0.01)),
                teacher="teacher",
                unlabelled=("audio",),
                codec="factored",
                **common,
            ),
        ],
        development="dev",
        tests=("test",),
        comparisons=[("student", "teacher"), ("student, second pass", "student")],
        records_per_shard=8,
    )


def go(work_dir, plan=None, **options):
    return run.run_plan(
        run.Start(plan or make_plan(), str(work_dir), **options), lambda: make_strategy("one_device"), None
    )


def times(work_dir):
    """When each file was written; reports are written anew, and locks are opened."""
    files = [
        path for path in work_dir.rglob("*") if path.is_file() and path.parent != work_dir and path.name != ".lock"
    ]
    return {str(path): path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_two_generations_leave_models_labels_results_and_a_report(finished):
    work_dir, report = finished
    for name in ("teacher", "student"):
        folder = work_dir / "seed-0" / name
        assert (folder / "model.json").exists() and (folder / "results.json").exists()
        assert json.loads((folder / "training.json").read_text())["steps"] == 4
    rows = {name: json.loads((work_dir / "seed-0" / name / "results.json").read_text()) for name in ROWS}
    assert [row["search"]["second_pass"] for row in rows.values()] == [False, False, True]
    assert rows["student"]["model"] == rows["student/second_pass"]["model"] != rows["teacher"]["model"]
    manifest = json.loads((work_dir / "seed-0/teacher/labels/audio-factored/manifest.json").read_text())
    teacher = json.loads((work_dir / "seed-0/teacher/model.json").read_text())
    assert manifest["utterances"] == 12 and manifest["source"]["teacher"] == teacher["weights_hash"]
    assert "teacher" in report and "student - teacher" in report and "student, second pass - student" in report
    assert (work_dir / "report.txt").read_text() == report + "\n"
    assert "seconds" not in (work_dir / "results.json").read_text()


@pytest.mark.slow
def test_in_a_whole_run_features_stand_in_where_only_trainings_read(finished, work_dir):
    plan = make_plan()
    trained_on = [
        dataclasses.replace(c, features="uint16" if c.name in ("train", "audio") else None) for c in plan.corpora
    ]
    go(work_dir, dataclasses.replace(plan, corpora=trained_on))
    labels = "seed-0/teacher/labels/audio-factored"
    sizes = [
        {name: sum(path.stat().st_size for path in folder.glob(f"{name}*/*.tfrecord")) for name in SETS}
        for folder in (finished[0], work_dir)
    ]
    assert (work_dir / f"{labels}-uint16").is_dir()
    assert sizes[0]["records/audio"] == sizes[1]["records/audio"]  # which the teacher has to hear
    assert sizes[0]["records/dev"] == sizes[1]["records/dev"]
    assert all(sizes[1][name] < 0.75 * sizes[0][name] for name in ("records/train", labels))
    with pytest.raises(UserError, match="train holds features in place of audio"):
        next(open_records(str(work_dir / "records/train")).read())


@pytest.mark.slow
def test_a_second_start_does_nothing(finished):
    work_dir, report = finished
    before, results = times(work_dir), (work_dir / "results.json").read_bytes()
    assert go(work_dir) == report
    assert times(work_dir) == before and (work_dir / "results.json").read_bytes() == results


@pytest.mark.slow
@pytest.mark.parametrize("row", ["student", "student/second_pass"])
def test_only_what_is_missing_is_done_again(finished, row):
    work_dir, report = finished
    before = times(work_dir)
    lost = work_dir / "seed-0" / row / "results.json"
    content = lost.read_bytes()
    lost.unlink()
    assert not run.is_finished(run.Start(make_plan(), str(work_dir)), find_job(make_plan(), "0/student"))
    assert go(work_dir) == report and lost.read_bytes() == content
    changed = {path for path, time in times(work_dir).items() if before[path] != time}
    assert changed == {str(lost.with_name(n)) for n in ("results.json", "results.lineage.json", "hypotheses-test.tsv")}


def test_preparation_writes_every_corpus_once_with_one_tokenizer(work_dir):
    prepared = prepare(make_plan(), str(work_dir))
    assert prepared.records("train").num_utterances == 12 and prepared.tokenizer().vocabulary_size == 6
    audio = list(prepared.records("audio").read())
    assert all(record.text == "" and len(record.labels) == 0 for record in audio)
    before = {path: path.stat().st_mtime_ns for path in work_dir.rglob("*")}
    prepare(make_plan(), str(work_dir))
    assert {path: path.stat().st_mtime_ns for path in work_dir.rglob("*")} == before


def test_a_transcript_that_is_missing_or_unknown_is_refused_by_name(work_dir):
    def silent():
        return [dataclasses.replace(u, text=None) for u in tone_utterances(num_utterances=2, seed=1)]

    def foreign():
        return [dataclasses.replace(u, text="XYZ") for u in tone_utterances(num_utterances=2, seed=3)]

    plan = make_plan()
    train, audio, dev, test = plan.corpora
    with pytest.raises(UserError, match="utterance tone-1-0000 has no transcript"):
        prepare(dataclasses.replace(plan, corpora=[Corpus("train", silent), audio, dev, test]), str(work_dir / "a"))
    with pytest.raises(UserError, match="utterance tone-3-0000: .* does not know"):
        prepare(dataclasses.replace(plan, corpora=[train, audio, Corpus("dev", foreign), test]), str(work_dir / "b"))


def test_a_generation_in_work_is_left_to_its_owner(work_dir, monkeypatch):
    monkeypatch.setattr(run.time, "sleep", lambda seconds: None)
    with run._sole_user(str(work_dir)), pytest.raises(UserError, match="another process works in"):
        with run._sole_user(str(work_dir)):
            pass
    with run._sole_user(str(work_dir)):
        pass
