import dataclasses
import hashlib

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_rnnt_kd.data import schema

D, V = 3, 5
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def spec(codec="factored", dtype="float32", **changes):
    values = dict(codec=codec, dtype=dtype, width=D, vocabulary_size=V, blank_id=0, teacher_hash="teacher")
    return schema.TargetsSpec(**{**values, **changes})


def record(num_labels=2, num_frames=4, codec=None, dtype="float32", num_samples=7, **changes):
    rng = np.random.default_rng(num_labels)
    shapes = {
        None: {},
        "factored": {"encoded": [num_frames, D], "predicted": [num_labels + 1, D]},
        "lattice": {"logits": [num_frames, num_labels + 1, V]},
    }[codec]
    values = dict(
        id="84-121-0001",
        speaker="84",
        text="ÉTÉ",
        samples=rng.integers(-(2**15), 2**15, num_samples).astype(np.int16),
        labels=np.arange(1, num_labels + 1, dtype=np.int32),
        **{name: rng.normal(size=shape).astype(DTYPES[dtype]) for name, shape in shapes.items()},
    )
    return schema.Record(**{**values, **changes})


def assert_same(found, expected):
    for field in dataclasses.fields(schema.Record):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", schema.CODECS)
@pytest.mark.parametrize("num_labels", [0, 3])
def test_decoding_gives_back_what_was_encoded(codec, dtype, num_labels):
    written = record(num_labels, codec=codec, dtype=dtype, source=schema.TEACHER_HYPOTHESIS, score=-2.5)
    schema.check_record(written, spec(codec, dtype))
    assert_same(schema.decode_record(schema.encode_record(written), spec(codec, dtype)), written)


@settings(max_examples=15, deadline=None)
@given(
    samples=st.lists(st.integers(-(2**15), 2**15 - 1), max_size=20),
    labels=st.lists(st.integers(1, 2**31 - 1), max_size=6),
    text=st.text(max_size=10),
    score=st.floats(width=32, allow_nan=False),
)
def test_any_human_record_survives_the_round_trip(samples, labels, text, score):
    written = record(samples=np.array(samples, np.int16), labels=np.array(labels, np.int32), text=text, score=score)
    assert_same(schema.decode_record(schema.encode_record(written)), written)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", schema.CODECS)
def test_the_graph_reads_what_numpy_wrote(codec, dtype):
    targets = spec(codec, dtype)
    written = record(codec=codec, dtype=dtype, source=1, score=-0.5)
    serialized = tf.data.Dataset.from_tensors(schema.encode_record(written))
    (parsed,) = serialized.map(lambda x: schema.parse_record(x, targets)).as_numpy_iterator()
    for name, value in parsed.items():
        expected = getattr(written, name)
        np.testing.assert_array_equal(value, expected.encode() if isinstance(expected, str) else expected, err_msg=name)
    assert parsed["samples"].dtype == np.int16 and parsed["labels"].dtype == np.int32
    assert set(parsed) == {"id", "speaker", "text", "samples", "labels", "source", "score", *targets.fields()}
    assert all(parsed[name].dtype == DTYPES[dtype] for name in targets.fields())


@pytest.mark.parametrize("codec", schema.CODECS)
def test_a_parsed_target_knows_its_last_axis_before_it_is_read(codec):
    dataset = tf.data.Dataset.from_tensors(b"").map(lambda x: schema.parse_record(x, spec(codec)))
    for name, size in spec(codec).fields().items():
        assert dataset.element_spec[name].shape.rank == (3 if codec == "lattice" else 2)
        assert dataset.element_spec[name].shape[-1] == size


@pytest.mark.parametrize("codec", schema.CODECS)
def test_a_human_record_in_a_set_with_targets_has_no_teacher_frames(codec):
    written = record(codec=None)
    schema.check_record(written, spec(codec))
    assert_same(schema.decode_record(schema.encode_record(written), spec(codec)), written)
    parsed = schema.parse_record(schema.encode_record(written), spec(codec))
    assert all(parsed[name].shape[0] == 0 for name in spec(codec).fields())


def test_targets_can_be_left_unread():
    serialized = schema.encode_record(record(codec="factored"))
    assert schema.decode_record(serialized).encoded is None
    assert "encoded" not in schema.parse_record(serialized, None)


def test_big_endian_arrays_are_stored_little_endian():
    native = record(codec="factored")
    swapped = dataclasses.replace(native, samples=native.samples.astype(">i2"), encoded=native.encoded.astype(">f4"))
    assert schema.encode_record(swapped) == schema.encode_record(native)


def test_bytes_are_the_same_in_every_process_and_version():
    """Whoever has to change this number changes what is on disk: raise SCHEMA_VERSION too."""
    written = record(codec="factored", samples=np.arange(7, dtype=np.int16), encoded=np.ones([4, D], np.float32))
    written = dataclasses.replace(written, predicted=np.full([3, D], 0.5, np.float32))
    digest = hashlib.sha256(schema.encode_record(written)).hexdigest()
    assert (schema.SCHEMA_VERSION, digest[:16]) == (3, "873627f745958276")


@pytest.mark.parametrize(
    ("changes", "targets", "message"),
    [
        ({"samples": np.zeros(4, np.float32)}, None, "samples of record '84-121-0001' must be one axis of int16"),
        ({"samples": np.zeros([4, 1], np.int16)}, None, r"must be one axis of int16, not \(4, 1\) int16"),
        ({"labels": np.array([1], np.int64)}, None, "labels of record '84-121-0001' must be one axis of int32"),
        ({"encoded": np.zeros([2, D], np.float32)}, None, r"carries \['encoded'\], its set stores \[\]"),
        ({"encoded": np.zeros([2, D], np.float32)}, spec(), r"its set stores \['encoded', 'predicted'\]"),
        ({"logits": np.zeros([2, 3, V], np.float32)}, spec(), r"carries \['logits'\]"),
        ({"logits": np.zeros([2, 3, V], np.float32)}, spec("lattice", "float16"), r"\(2, 3, 5\) float32, which"),
        ({"logits": np.zeros([2, 2, V], np.float32)}, spec("lattice"), "logits of record '84-121-0001' with 2"),
        ({"logits": np.zeros([2, 3, V + 1], np.float32)}, spec("lattice"), "does not fit TargetsSpec"),
        ({"logits": np.zeros([3, V], np.float32)}, spec("lattice"), "does not fit TargetsSpec"),
    ],
)
def test_a_record_that_could_not_be_read_back_is_refused(changes, targets, message):
    with pytest.raises(ValueError, match=message):
        schema.check_record(record(**changes), targets)


def test_targets_with_a_row_too_few_are_refused():
    short = record(codec="factored", predicted=np.zeros([2, D], np.float32))
    with pytest.raises(ValueError, match=r"predicted of record '84-121-0001' with 2 labels is \(2, 3\) float32"):
        schema.check_record(short, spec())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "top_k"}, "codec 'top_k' is none of factored, lattice"),
        ({"dtype": "int8"}, "dtype 'int8' of the teacher targets is none of float32, float16, bfloat16"),
        ({"width": 0}, "no teacher has width 0"),
        ({"vocabulary_size": 0}, "a vocabulary of 0"),
    ],
)
def test_impossible_targets_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(**changes)


def test_the_lattice_codec_needs_no_width():
    assert spec("lattice", width=0).fields() == {"logits": V}


def test_a_damaged_record_does_not_parse():
    with pytest.raises(tf.errors.InvalidArgumentError, match="Could not parse example input"):
        schema.parse_record(b"\x0a\x7fnot an example", None)
