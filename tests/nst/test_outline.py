import dataclasses
import re

import pytest

from tf_rnnt_kd.config import load_plan
from tf_rnnt_kd.nst.outline import _amount, describe
from tf_rnnt_kd.nst.preparation import Prepared, prepare

NOTHING = Prepared("nowhere")


@pytest.fixture(scope="module")
def quickstart():
    return describe(load_plan("configs/quickstart.gin")[0], NOTHING)


def test_the_quickstart_in_words(quickstart):
    lines = [line.strip() for line in quickstart.splitlines()]
    assert lines[0] == "plan quickstart: 3 generations, 1 seed(s)"
    assert "digits-unlabelled: audio only, size known when prepared" in lines
    assert "digits-labelled: transcribed, size known when prepared" in lines
    assert "tokenizer: characters, about 29 tokens with blank" in lines
    assert [line for line in lines if line in ("teacher", "soft student", "streaming student")] == [
        "teacher",
        "soft student",
        "streaming student",
    ]


def test_every_generation_has_its_model_steps_batches_and_loss(quickstart):
    teacher, soft, streaming = quickstart.split("\n\n")[2:]
    assert (
        "0.8 M parameters, full context, float32" in teacher
        and "causal, 64 frames back, up to 0 ahead, float32" in streaming
    )
    assert all("steps of about 15 s of audio" in part and "batches: " in part for part in (teacher, soft, streaming))
    assert "1 transducer + 0.3 CTC + 0 KL" in teacher and "+ 0.01 KL" in soft and "+ 0.01 KL" in streaming
    assert "pseudo-labelled" not in teacher
    assert "pseudo-labelled by teacher: digits-unlabelled; 10 % labelled" in soft


def test_a_cascade_in_words():
    causal, cascade, in_place = describe(load_plan("configs/digits_cascade.gin")[0], NOTHING).split("\n\n")[3:]
    assert "up to 0 ahead, float32" in causal and "second" not in causal
    for part in (cascade, in_place):
        assert "causal, 64 frames back, up to 0 ahead, then 2 blocks (0.4 M) of full context, float32" in part
    assert "loss: 1 transducer + 0.3 CTC + 0 KL, + 1 x (1 transducer + 0.3 CTC + 0.01 KL)" in cascade
    assert "loss: 1 transducer + 0.3 CTC + 0.01 KL in place, + 1 x (1 transducer + 0.3 CTC + 0.01 KL)" in in_place


def test_stored_targets_are_sized_by_the_hour(quickstart):
    # (25 frames + 4 labels) a second of 96 floats of 4 bytes, and the audio: 3600 * (29 * 384 + 32000) bytes.
    assert quickstart.count("digits-unlabelled-factored (factored, float32): 155 MB an hour") == 2


def test_features_in_place_of_audio_are_a_quarter_of_it(quickstart):
    plan = load_plan("configs/quickstart.gin")[0]
    corpora = [
        dataclasses.replace(c, features=None if "dev" in c.name or "test" in c.name else "uint8", hours=1.0)
        for c in plan.corpora
    ]
    words = describe(dataclasses.replace(plan, corpora=corpora), NOTHING)
    # As above, with 8000 bytes a second in place of 32000.
    assert words.count("digits-unlabelled-factored-uint8 (factored, float32): 68.9 MB an hour") == 2
    assert "digits-labelled: transcribed, 1 h, 28.8 MB of records" in words
    assert "digits-unlabelled: audio only, 1 h, 115 MB of records" in words


def test_what_is_prepared_is_told_as_it_is(work_dir):
    plan = load_plan("tests/toy_chain.gin", trusted=["tests.toy"])[0]
    assert "  train: transcribed, size known when prepared" in describe(plan, NOTHING)
    assert "tokenizer: characters, about 29 tokens" in describe(plan, NOTHING)
    words = describe(plan, prepare(plan, str(work_dir / "records")))
    assert "  train: transcribed, 60 utterances, 0.02 h, prepared" in words
    assert "tokenizer: characters, 6 tokens with blank" in words


def test_the_same_plan_gives_the_same_words(quickstart):
    assert describe(load_plan("configs/quickstart.gin")[0], NOTHING) == quickstart


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2.5e9, "2.5 GB"), (3.21e15, "3.21e+03 TB")]
)
def test_amounts_are_readable(size, text):
    assert _amount(size) == text


def test_language_models_and_decodings_are_told():
    lines = describe(load_plan("tests/toy_chain.gin", trusted=["tests.toy"])[0], NOTHING).splitlines()
    assert "language model 3-grams: 3-grams" in lines
    assert "language model lstm: 0.0 M parameters, 60 steps of at most 400 labels" in lines
    wanted = "  also decoded as LSTM: beam 3; weight of 0, 0.5; internal weight of 0, 0.2"
    assert wanted in lines and "  also decoded as 3-grams: beam 3; weight of 0.3" in lines


def test_a_step_takes_what_a_micro_batch_takes(quickstart):
    halved = describe(load_plan("configs/quickstart.gin", ["loop.Training.accumulation=2"])[0], NOTHING)
    rows = [[int(n) for n in re.findall(r"for a step of (\d+) x", text)] for text in (quickstart, halved)]
    assert len(rows[0]) == 3 and rows[1] == [n // 2 for n in rows[0]]
