import numpy as np
import pytest

from tests.data.batches import SMALL, assert_equal_batches, plan, read, schedule_of
from tests.workers import input_server
from tf_rnnt_kd.data.pipeline import Augmentation, Share
from tf_rnnt_kd.errors import UserError


@pytest.fixture(scope="module")
def server():
    with input_server() as address:
        yield address


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("first_step", "share"), [(0, Share()), (4, Share(1, 1, 2)), (3, Share(0, 2, 2))])
def test_batches_are_those_that_this_process_would_make(sets, server, count, first_step, share):
    schedule = schedule_of(sets, "factored")
    both, settings = [sets[None], sets["factored"]], {"first_step": first_step, "share": share}
    ours = read(both, schedule, augmentation=Augmentation(), **settings)
    theirs = read(both, schedule, augmentation=Augmentation(), servers=count * (server,), **settings)
    assert_equal_batches(theirs, ours)
    assert len(ours) == (9 - first_step) * share.count and any(np.any(batch.teacher.weight) for batch in ours)


@pytest.mark.parametrize(
    ("server", "words"),
    [("localhost:1", "localhost:1 does not answer"), ("localhost", "is no address"), (":5050", "is no address")],
)
def test_a_server_that_is_not_there_is_refused_by_name(sets, server, words):
    schedule = plan([sets[None]], num_steps=2, buckets=SMALL)
    with pytest.raises(UserError, match=words):
        read([sets[None]], schedule, servers=(server,))
