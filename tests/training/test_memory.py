import pytest

from tests import tiny
from tf_rnnt_kd.data.batching import Buckets
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.training import memory
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.memory import StepShape, available_bytes, check_memory, step_bytes
from tf_rnnt_kd.training.objective import Band, Objective

SHAPE = StepShape(batch=8, frames=250, labels=40)
BUCKETS = Buckets((4.0, 10.0), batch_seconds=80.0)


@pytest.fixture(scope="module")
def model():
    return tiny.transducer(1024, joint_width=320, has_additive_joint=True)


def test_more_of_anything_takes_more(model):
    least = step_bytes(model, Objective(), SHAPE)
    for field in SHAPE._fields:
        assert step_bytes(model, Objective(), SHAPE._replace(**{field: 2 * getattr(SHAPE, field)})) > least
    assert step_bytes(model, Objective(kl_weight=0.01), SHAPE) > least
    assert step_bytes(tiny.transducer(1024, joint_width=320, num_blocks=3), Objective(), SHAPE) > least


def test_the_lattice_is_in_tiles_of_which_some_are_kept(model):
    logits = 4 * 8 * 250 * 401 * 1024
    more, less = (step_bytes(model, Objective(), SHAPE._replace(labels=labels)) for labels in (400, 200))
    assert more - less < logits / 8


def test_limited_context_and_recomputed_blocks_take_less():
    plain, causal, recomputed = (
        step_bytes(tiny.transducer(64, num_blocks=4, **options), Objective(), SHAPE)
        for options in ({}, {"causal": True}, {"rematerialise": True})
    )
    assert causal < plain and recomputed < plain


def test_a_second_pass_adds_full_context_blocks_and_a_lattice():
    first, both = (tiny.transducer(64, num_blocks=4, causal=True, second_pass_blocks=n) for n in (0, 2))
    frozen = step_bytes(both, Objective(), SHAPE)
    numbers = memory._PER_FRAME_WIDTH * 16 + memory._PER_FRAME_SCORE * 2 * 250
    weights = memory._PER_WEIGHT * (both.count_params() - first.count_params())
    added = 2 * (memory._BLOCK_BYTES + 4 * 8 * 250 * numbers) + 4 * weights
    assert frozen - step_bytes(first, Objective(), SHAPE) == pytest.approx(added, rel=1e-6)
    lattices = [step_bytes(both, CascadedObjective(first), SHAPE) for first in (Objective(), Objective(kl_weight=0.1))]
    assert frozen < lattices[0] < lattices[1]


def test_recomputing_a_cascade_keeps_one_block_of_full_context():
    plain, recomputed = (
        step_bytes(tiny.transducer(64, causal=True, second_pass_blocks=3, rematerialise=r), CascadedObjective(), SHAPE)
        for r in (False, True)
    )
    scores = memory._PER_FRAME_SCORE * 2 * (2 * 250 + 6)  # two blocks of full context, one of limited
    kept = 4 * 8 * 250 * (3 * memory._PER_FRAME_WIDTH * 16 + scores - 4 * 16)
    assert plain - recomputed == pytest.approx(kept, rel=1e-6)


def test_a_band_takes_what_its_nodes_take(model):
    narrow, wide = (step_bytes(model, Objective(band=Band(columns=n)), SHAPE) for n in (2, 20))
    nodes = 8 * 250 * (20 - 2)
    assert wide - narrow == pytest.approx(4 * memory._PER_JOINT * nodes * (3 * 320 + 5 * 1024), rel=1e-6)


def test_a_batch_that_cannot_fit_is_refused_with_the_one_that_would(model):
    available = step_bytes(model, Objective(), StepShape(5, 250, 40)) + 1.0
    with pytest.raises(UserError, match=r"8 x 10 s, 40 labels.*: 5 x 10 s would fit: set Buckets.batch_seconds = 50"):
        check_memory(model, Objective(), Buckets((10.0,), 80.0), [40], available)
    with pytest.raises(UserError) as refused:
        check_memory(model, Objective(), BUCKETS, [20, 40], available)
    seconds = float(refused.value.message.rsplit(" ", 1)[1])
    check_memory(model, Objective(), Buckets(BUCKETS.seconds, seconds), [20, 40], available)


def test_parts_of_a_batch_take_what_they_are(model):
    available = step_bytes(model, Objective(), StepShape(4, 250, 40)) + 1.0
    check_memory(model, Objective(), Buckets((10.0,), 80.0), [40], available, parts=2)
    with pytest.raises(UserError, match=r"8 x 10 s, 40 labels.*: 4 x 10 s would fit: set Buckets.batch_seconds = 80"):
        check_memory(model, Objective(), Buckets((10.0,), 160.0), [40], available, parts=2)


def test_what_fits_or_is_not_known_is_not_refused(model):
    check_memory(model, Objective(), BUCKETS, [20, 40], 1e12)
    check_memory(model, Objective(), BUCKETS, [20, 40], None)


def test_a_model_that_is_too_large_alone_is_said_to_be(model):
    with pytest.raises(UserError, match="one utterance of some bucket is too much already"):
        check_memory(model, Objective(), BUCKETS, [20, 40], 1e6)


def test_free_memory_is_read_from_the_system():
    assert 1e8 < available_bytes() < 1e14
