"""`prepare` as a command; `label`, `evaluate`, `export` and `transcribe` as commands, on one small model."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests.data.sounds import add_audio, random_samples
from tests.serving import networks
from tf_rnnt_kd.data.record_writer import write_records
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.data.schema import Record
from tf_rnnt_kd.evaluation.results import read_results, read_transcriptions
from tf_rnnt_kd.evaluation.wer import count_errors, sum_errors
from tf_rnnt_kd.models.conformer import ConformerEncoder
from tf_rnnt_kd.models.saving import save_model
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.text.tokenizer import train_tokenizer

pytestmark = pytest.mark.slow

_TEXTS = ["ONE TWO", "THREE", "TWO TWO ONE"]


def _run(command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"tf_rnnt_kd.{command}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, two record sets and two audio files."""
    folder = tmp_path_factory.mktemp("commands")
    tokenizer = train_tokenizer(_TEXTS, str(folder / "tokenizer"), kind="characters", vocabulary_size=None)
    encoder = ConformerEncoder(16, 1, 2, 5, causal=True, left_context=6)
    model = Transducer(tokenizer.vocabulary_size, encoder, prediction_width=16, joint_width=16)
    model.joint.kernel.assign(6 * model.joint.kernel.value)
    save_model(model, tokenizer, str(folder / "student"))
    teacher = Transducer(tokenizer.vocabulary_size, ConformerEncoder(16, 1, 2, 5), prediction_width=16, joint_width=16)
    save_model(teacher, tokenizer, str(folder / "teacher"))
    for name, num_utterances in (("clean", 3), ("noisy", 2), ("a=1,b", 3)):
        _write_set(folder / name, tokenizer, num_utterances)
    _write_set(folder / "shouted", tokenizer, 3, "«{}!»".format)
    for name, seconds in (("long.wav", 2.0), ("short.flac", 0.02)):
        soundfile.write(folder / name, networks.noise(seconds).clip(-1, 1), 16_000)
    return folder


@pytest.fixture(scope="module")
def saved(place):
    """The SavedModel of the student, with three hypotheses."""
    exported = _run("export", "--checkpoint", place / "student", "--output", place / "saved", "--beam=3")
    assert exported.returncode == 0, exported.stderr
    return place / "saved"


def _write_set(folder, tokenizer, num_utterances, spell=None):
    samples = [(networks.noise(1.0 + i) * 30_000).clip(-32_768, 32_767).astype(np.int16) for i in range(num_utterances)]
    items = [
        Record(
            f"utterance-{i}",
            f"voice-{i}",
            spell(text.lower()) if spell else text,
            row,
            np.array(tokenizer.encode(text), np.int32),
        )
        for i, (row, text) in enumerate(zip(samples, _TEXTS, strict=False))
    ]
    manifest = {"tokenizer_hash": tokenizer.hash, "sample_rate": 16_000, "targets": None, "source": "noise"}
    write_records(str(folder), items, lambda part: part, manifest=manifest, records_per_shard=2)


def test_prepare_makes_the_tokenizer_and_the_record_sets_of_a_plan(tmp_path):
    places = "--config=tests/toy_chain.gin", f"--output={tmp_path}"
    for trust in (["--trust_config"], []):  # the second finds everything, and is trusted
        finished = _run("prepare", *places, *trust, "--param=train/toy.tone_utterances.num_utterances=40")
        assert finished.returncode == 0, finished.stderr
        words = "a tokenizer of 6 labels, 4 record sets: train, audio, dev, test"
        assert finished.stdout.endswith(f"  {tmp_path}: {words}\n"), finished.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "audio",
        "config.gin",
        "dev",
        "test",
        "tokenizer",
        "train",
    ]
    sets = {name: open_records(str(tmp_path / name)) for name in ("train", "audio")}
    assert sets["train"].num_utterances == 40 and sets["audio"].num_utterances == 80
    assert {record.text for record in sets["audio"].read()} == {""} != {record.text for record in sets["train"].read()}


def test_prepare_refuses_all_bad_audio_or_leaves_it_out(tmp_path):
    lines = []
    for name in "abcd":
        add_audio(tmp_path / "corpus" / f"{name}.flac", random_samples(1.0))
        lines.append(f"{name} AB CD BAD\n")
    (tmp_path / "corpus" / "x.trans.txt").write_text("".join(lines))
    for name in "bd":
        (tmp_path / "corpus" / f"{name}.flac").write_bytes(b"no audio")
    config = tmp_path / "plan.gin"
    config.write_text(
        "from __gin__ import dynamic_registration\n"
        "from tf_rnnt_kd.data import corpora\n"
        "from tf_rnnt_kd.nst import plan\n"
        "include 'tests/toy_chain.gin'\n"
        "train/plan.Corpus.utterances = @corpora.read_librispeech\n"
        f"corpora.read_librispeech.folder = '{tmp_path}/corpus'\n"
        "corpora.read_librispeech.max_seconds = 9.0\n"
    )
    places = f"--config={config}", f"--output={tmp_path / 'records'}", "--trust_config"
    refused = _run("prepare", *places)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert all(
        f"cannot read audio from {tmp_path}/corpus/{name}.flac: it is no audio" in refused.stderr for name in "bd"
    )
    assert "--skip_bad N leaves out up to N such files, now 0" in refused.stderr
    finished = _run("prepare", *places, "--skip_bad=2")
    assert finished.returncode == 0, finished.stderr
    assert f"2 bad files left out, see {tmp_path}/records/train/skipped.tsv" in finished.stdout
    assert open_records(str(tmp_path / "records" / "train")).num_utterances == 2


def test_label_stores_what_the_teacher_says(place):
    places = "--checkpoint", place / "teacher", "--records", place / "clean"
    for name, *options in (("hard", "--codec=transcripts"), ("soft", "--features=uint8", "--dtype=bfloat16")):
        finished = _run("label", *places, "--output", place / name, *options)
        assert finished.returncode == 0, finished.stderr
    hard, soft = (open_records(str(place / name)) for name in ("hard", "soft"))
    assert hard.targets is None and (soft.targets.codec, soft.targets.dtype) == ("factored", "bfloat16")
    assert (hard.features_dtype, soft.features_dtype) == (None, "uint8")
    assert hard.ids == soft.ids == ["utterance-0", "utterance-1", "utterance-2"]
    assert np.array_equal(hard.index.num_labels, soft.index.num_labels) and np.any(hard.index.num_labels)


def test_evaluating_twice_gives_equal_bytes(place):
    outputs = []
    for name in ("first", "second"):
        sets, output = f"{place / 'clean'},{place / 'noisy'}", place / name / "results.json"
        places = ("--checkpoint", place / "student", "--records", sets, "--output", output)
        finished = _run("evaluate", *places, "--beam=2", "--synchrony=alignments", "--blank_penalty=0.5")
        assert finished.returncode == 0, finished.stderr
        assert "clean WER %" in finished.stdout and "student" in finished.stdout
        outputs.append({path.name: path.read_bytes() for path in output.parent.iterdir()})
    assert outputs[0] == outputs[1]
    assert sorted(outputs[0]) == [
        "hypotheses-clean.tsv",
        "hypotheses-noisy.tsv",
        "results.json",
        "results.lineage.json",
    ]
    assert read_results(str(place / "first" / "results.json"))["clean"].words == 6
    searched = json.loads((place / "first" / "results.json").read_text())["search"]
    wanted = {"beam": 2, "synchrony": "alignments", "blank_penalty": 0.5, "chunk": 1, "second_pass": False}
    assert searched == wanted
    assert [item.reference for item in read_transcriptions(str(place / "first"), "clean")] == _TEXTS


def test_words_are_compared_by_the_normaliser_that_is_asked_for(place):
    found, output = {}, place / "normalised" / "results.json"
    for name in ("none", "case_and_punctuation"):
        asked = () if name == "none" else ("--normaliser", name)
        places = ("--checkpoint", place / "student", "--records", place / "shouted", "--output", output)
        finished = _run("evaluate", *places, *asked)
        assert finished.returncode == 0, finished.stderr
        assert json.loads(output.read_text())["scoring"] == {"normaliser": name, "version": "1"}
        items = read_transcriptions(str(output.parent), "shouted")
        assert [item.reference for item in items] == [f"«{text.lower()}!»" for text in _TEXTS]
        found[name] = read_results(str(output))["shouted"]
        assert f"{found[name].wer:.2f} [" in finished.stdout
        counted = sum_errors(count_errors(item.reference, item.hypothesis, name) for item in items)
        assert (found[name].words, found[name].wer) == (counted.words, counted.wer)
    refused = _run("evaluate", *places, "--normaliser=spaces")
    assert refused.returncode == 2 and "--normaliser" in refused.stderr and "case_and_punctuation" in refused.stderr


def test_latency_is_measured_against_a_full_context_teacher_and_no_other(place):
    model = ["--checkpoint", place / "student", "--records", place / "noisy"]
    finished = _run("evaluate", *model, "--output", place / "l" / "results.json", "--latency", place / "teacher")
    assert finished.returncode == 0, finished.stderr
    assert "chunk_compute_ms" in finished.stdout
    found = json.loads((place / "l" / "latency.json").read_text())["sets"]["noisy"]
    assert found["chunk_ms"] == 40.0 and found["changed_words"] == 0 and found["chunk_compute_ms"]["count"] > 60
    refused = _run("evaluate", *model, "--output", place / "m" / "results.json", "--latency", place / "student")
    assert refused.returncode == 2 and "student is causal" in refused.stderr.splitlines()[-1]


def test_records_may_be_called_what_separates_them(place):
    sets, output = f"{place / 'a=1,b'},{place / 'noisy'}", place / "comma" / "results.json"
    finished = _run("evaluate", "--checkpoint", place / "student", "--records", sets, "--output", output)
    assert finished.returncode == 0, finished.stderr
    assert "a=1,b WER %" in finished.stdout and "[ ]  95 % interval" in finished.stdout
    assert sorted(read_results(str(output))) == ["a=1,b", "noisy"]
    heard = read_transcriptions(str(place / "comma"), "a=1,b")
    assert [item.speaker for item in heard] == ["voice-0", "voice-1", "voice-2"]
    assert len({item.audio for item in heard}) == 3


def test_exported_model_transcribes_files(place):
    for _ in range(2):  # the second time it is there already
        exported = _run("export", "--checkpoint", place / "student", "--output", place / "exported")
        assert exported.returncode == 0, exported.stderr
    whole = _run(
        "transcribe", "--model", place / "exported", place / "long.wav", place / "short.flac", "--chunk_ms=60000"
    )
    assert whole.returncode == 0, whole.stderr
    long, short = whole.stdout.splitlines()
    assert long.startswith(f"{place / 'long.wav'}: ") and len(long) > len(f"{place / 'long.wav'}: ") + 5
    assert short == f"{place / 'short.flac'}: "
    chunks = _run("transcribe", "--model", place / "exported", place / "long.wav", "--chunk_ms=50")
    assert chunks.stdout.splitlines() == [long]


def test_a_folder_and_standard_input_are_transcribed(place, saved):
    folder = place / "audio" / "deep"
    folder.mkdir(parents=True)
    samples = (networks.noise(2.0).clip(-1, 1) * 32_767).astype("<i2")
    soundfile.write(folder / "a.wav", samples, 16_000)
    command = [
        sys.executable,
        "-m",
        "tf_rnnt_kd.transcribe",
        "--model",
        str(saved),
        str(place / "audio"),
        "-",
    ]
    finished = subprocess.run(command, input=samples.tobytes(), capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr
    file, stdin = finished.stdout.decode().splitlines()
    assert file == f"{folder / 'a.wav'}: {stdin.removeprefix('-: ')}" and len(stdin) > 8
    refused = _run("transcribe", "--model", saved, place / "student")
    assert refused.returncode == 2 and "student has no audio" in refused.stderr.splitlines()[-1]


def test_hypotheses_and_subtitles_come_from_exports_of_both_kinds(place, saved):
    options = ["--tflite=int8", "--step_frames=2", "--output", place / "lite"]
    exported = _run("export", "--checkpoint", place / "student", *options)
    assert exported.returncode == 0, exported.stderr
    options = ["--format=json", "--nbest=2", "--output", place / "json"]
    written = _run("transcribe", "--model", saved, *options, place / "long.wav", place / "short.flac")
    assert written.returncode == 0, written.stderr
    long, short = (json.loads((place / "json" / f"{name}.json").read_text()) for name in ("long", "short"))
    assert len(long["nbest"]) == 2 and long["nbest"][0]["score"] > long["nbest"][1]["score"]
    assert [word["word"] for word in long["words"]] == long["text"].split() != []
    assert short["text"] == "" and len(short["nbest"]) == 1
    subtitles = _run("transcribe", "--model", place / "lite", "--format=srt", place / "long.wav")
    assert subtitles.returncode == 0, subtitles.stderr
    assert subtitles.stdout.startswith("1\n00:00:0")


def test_export_does_not_overwrite_another_folder(place):
    refused = _run("export", "--checkpoint", place / "student", "--output", place / "clean")
    assert refused.returncode == 2 and "clean exists" in refused.stderr.splitlines()[-1]


def test_sets_of_one_name_are_refused(place):
    sets = f"{place / 'clean'},{place / 'student' / '..' / 'clean'}"
    refused = _run("evaluate", "--checkpoint", place / "student", "--records", sets, "--output", place / "x.json")
    assert refused.returncode == 2 and "same last name" in refused.stderr.splitlines()[-1]


def test_a_pass_that_is_missing_is_named(place):
    for command in ("export", "evaluate"):
        more = ["--records", place / "clean"] if command == "evaluate" else []
        options = ["--checkpoint", place / "student", "--output", place / "z.json", "--second_pass", *more]
        refused = _run(command, *options)
        assert refused.returncode == 2 and "student has no second pass" in refused.stderr.splitlines()[-1]


def test_checkpoint_that_is_missing_is_named(place):
    for command in ("export", "evaluate"):
        more = ["--records", place / "clean"] if command == "evaluate" else []
        refused = _run(command, "--checkpoint", place / "gone", "--output", place / "y.json", *more)
        assert refused.returncode == 2 and "gone" in refused.stderr.splitlines()[-1]
