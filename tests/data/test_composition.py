"""What batches hold, counted from the indexes, against the batches themselves."""

import numpy as np
import pytest

from tests import tiny
from tf_rnnt_kd.data.batching import make_schedule
from tf_rnnt_kd.data.composition import Compositions
from tf_rnnt_kd.data.pipeline import Augmentation, read_batches


@pytest.fixture(scope="module")
def mixed(toy_records, toy_targets):
    """Labelled and pseudo-labelled speech in batches of two shapes."""
    sets = [toy_records, toy_targets["factored"]]
    return sets, make_schedule(*([s] for s in sets), tiny.BUCKETS, num_steps=6, labelled_fraction=0.3, seed=2)


def test_counts_are_those_of_the_batches(mixed):
    sets, schedule = mixed
    found = Compositions(sets, schedule).of_steps(1, 5)
    common = {"augmentation": Augmentation(), "seed": 0, "with_teacher": False}
    batches = list(read_batches(sets, schedule, first_step=1, **common).take(4).as_numpy_iterator())
    assert len({batch.features.shape for batch in batches}) > 1
    frames = sum(np.sum(batch.num_features // 4) for batch in batches)
    labels = sum(np.sum(batch.num_labels) for batch in batches)
    assert found.frame_padding == pytest.approx(1.0 - 4 * frames / sum(np.size(b.features[..., 0]) for b in batches))
    assert found.label_padding == pytest.approx(1.0 - labels / sum(b.labels.size for b in batches))
    assert 0.0 < found.frame_padding < 1.0 and 0.0 < found.label_padding < 1.0
    sources = np.concatenate([batch.source for batch in batches])
    assert found.utterances == {"records": np.sum(sources == 0), "factored": np.sum(sources == 1)}


def test_sets_of_the_same_name_are_counted_together_and_no_steps_hold_nothing(mixed):
    sets, schedule = mixed
    one = make_schedule(sets[:1] * 2, [], tiny.BUCKETS, num_steps=3, labelled_fraction=1.0, seed=2)
    found = Compositions(sets[:1] * 2, one).of_steps(0, 3)
    assert found.utterances == {"records": sum(tiny.BUCKETS.batch_size(k) for k in one.bucket)}
    assert Compositions(sets, schedule).of_steps(2, 2).utterances == {"records": 0, "factored": 0}
