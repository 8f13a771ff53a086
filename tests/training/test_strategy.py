import pytest
import tensorflow as tf

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.training.strategy import STRATEGIES, make_strategy


@pytest.mark.parametrize("name", ["gpu", "", "TPU", "one device"])
def test_an_unknown_strategy_is_refused_with_those_there_are(name):
    with pytest.raises(UserError, match="unknown strategy .*auto, tpu, mirrored, multiworker, one_device"):
        make_strategy(name)


@pytest.mark.parametrize("name", ["one_device", "mirrored", "auto"])
def test_a_strategy_trains_a_variable(name):
    strategy = make_strategy(name)
    with strategy.scope():
        weight = tf.Variable(2.0)
    replicas = strategy.num_replicas_in_sync

    @tf.function(autograph=False)
    def step():
        def replica():
            total = tf.distribute.get_replica_context().all_reduce("sum", weight * 3.0)
            weight.assign(total)

        strategy.run(replica)

    step()
    assert weight.numpy() == 6.0 * replicas


def test_auto_is_one_device_without_accelerators(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    assert isinstance(make_strategy(), tf.distribute.OneDeviceStrategy)


def test_auto_is_the_tpu_when_one_is_named(monkeypatch):
    def resolver(tpu):
        raise ValueError(f"nothing named {tpu}\nand more lines")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolver)
    with pytest.raises(UserError, match=r"TPU 'v4-8' can't be used \(nothing named v4-8\): check --tpu"):
        make_strategy("auto", "v4-8")
    with pytest.raises(UserError, match="TPU 'local'"):
        make_strategy("tpu")


def test_every_listed_name_has_a_builder():
    from tf_rnnt_kd.training import strategy

    assert set(STRATEGIES) == {"auto", *strategy._BUILDERS}
