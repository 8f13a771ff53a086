"""Decoding a record set: order, batching and the shortest audio."""

import dataclasses

import numpy as np
import pytest

from tf_rnnt_kd.data.schema import Record
from tf_rnnt_kd.decoding.fusion import weighted_sum
from tf_rnnt_kd.evaluation import decode
from tf_rnnt_kd.models.conformer import ConformerEncoder
from tf_rnnt_kd.models.transducer import Transducer

_SECONDS = [0.0, 0.02, 0.05, 0.5, 1.3, 0.9, 0.055, 1.0]


@dataclasses.dataclass
class Records:
    records: list

    def read(self):
        return iter(self.records)


class Letters:
    """The part of a tokenizer that decoding uses."""

    def decode(self, labels):
        return "".join(" ABCDEFG"[label] for label in labels)


@pytest.fixture(scope="module")
def model():
    encoder = ConformerEncoder(width=8, num_blocks=1, num_heads=2, kernel_size=3)
    model = Transducer(8, encoder, prediction_width=8, joint_width=8)
    model.joint.kernel.assign(3 * model.joint.kernel.value)
    return model


@pytest.fixture(scope="module")
def records():
    generator = np.random.default_rng(0)
    samples = [generator.normal(0, 3000, int(16_000 * seconds)).astype(np.int16) for seconds in _SECONDS]
    return [
        Record(str(i), f"voice {i % 3}", f"TEXT {i}", row, np.zeros([0], np.int32)) for i, row in enumerate(samples)
    ]


def test_transcriptions_come_in_the_order_of_the_records(model, records):
    found = list(decode.evaluate_records(model, Letters(), Records(records)))
    assert [item.id for item in found] == [record.id for record in records]
    assert [item.reference for item in found] == [record.text for record in records]
    assert [item.speaker for item in found] == [record.speaker for record in records]
    assert any(item.hypothesis for item in found)


def test_transcriptions_know_the_audio_that_was_heard(model, records):
    louder = [dataclasses.replace(record, samples=record.samples + np.int16(1)) for record in records]
    sets = (records, records, louder)
    first, again, other = ([item.audio for item in evaluated(model, heard)] for heard in sets)
    assert first == again and len(set(first)) == len(records)
    assert [a == b for a, b in zip(first, other, strict=True)] == [len(record.samples) == 0 for record in records]


def test_batching_does_not_change_hypotheses(model, records, monkeypatch):
    decoder = decode.make_decoder(model)
    whole = list(decode.evaluate_records(model, Letters(), Records(records), decode=decoder))
    monkeypatch.setattr(decode, "_SAMPLES_PER_BATCH", 1)
    monkeypatch.setattr(decode, "_UTTERANCES_SORTED", 3)
    alone = list(decode.evaluate_records(model, Letters(), Records(records), decode=decoder))
    assert [item.hypothesis for item in whole] == [item.hypothesis for item in alone]
    np.testing.assert_allclose([item.score for item in whole], [item.score for item in alone], rtol=1e-4, atol=1e-4)


def evaluated(model, records, **search):
    decoder = decode.make_decoder(model, **search)
    return list(decode.evaluate_records(model, Letters(), Records(records), decode=decoder))


@pytest.mark.parametrize("synchrony", ["frames", "alignments"])
def test_a_beam_finds_more_probable_hypotheses_and_audio_without_frames_has_none(model, records, synchrony):
    greedy, beam = evaluated(model, records), evaluated(model, records, beam=4, synchrony=synchrony)
    assert [item.id for item in beam] == [item.id for item in greedy]
    gains = [wide.score - narrow.score for wide, narrow in zip(beam, greedy, strict=True)]
    assert max(gains) > 0.0 and np.median(gains) >= 0.0
    assert [item.hypothesis for item in beam[:1]] == [""] == [item.hypothesis for item in greedy[:1]]


def test_a_reward_of_blank_and_a_price_of_labels_shorten_hypotheses(model, records):
    plain, *shorter = (
        sum(len(item.hypothesis) for item in evaluated(model, records, **search))
        for search in ({}, {"blank_penalty": -8.0}, {"label_scorer": weighted_sum([], length_bonus=-8.0)})
    )
    assert max(shorter) < plain


def test_audio_shorter_than_a_frame_has_an_empty_hypothesis(model, records):
    found = list(decode.evaluate_records(model, Letters(), Records([records[i] for i in (0, 1, 2)])))
    assert [(item.hypothesis, item.score) for item in found] == [("", 0.0)] * 3


def test_empty_record_set_gives_nothing(model):
    assert list(decode.evaluate_records(model, Letters(), Records([]))) == []
