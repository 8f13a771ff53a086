import signal
import subprocess
import sys
import time
from urllib.error import URLError

import pytest
import tensorflow as tf

from tests.workers import worker_environments
from tf_rnnt_kd.data.pipeline import Share
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.training import strategy as module
from tf_rnnt_kd.training.strategy import (
    STRATEGIES,
    distribute_batches,
    end_with_others,
    is_chief,
    make_strategy,
    of_chief,
)


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
    assert set(STRATEGIES) == {"auto", *module._BUILDERS}


def test_workers_have_to_be_told_of_each_other(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="multiworker needs TF_CONFIG in every process's environment, or .*Slurm"):
        make_strategy("multiworker")
    monkeypatch.setenv("TF_CONFIG", "{no json")
    with pytest.raises(UserError, match=r"the workers can't be joined \(.*\): check TF_CONFIG"):
        make_strategy("multiworker")


def test_a_worker_that_waits_for_the_others_says_so_and_can_be_stopped():
    told = worker_environments()[0]
    code = "from tf_rnnt_kd.training.strategy import make_strategy; make_strategy('multiworker')"
    with subprocess.Popen([sys.executable, "-c", code], env=told, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("  joining the workers 127.0.0.1:")
            time.sleep(2.0)  # by then it waits, deep inside TensorFlow
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == -signal.SIGINT
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (tf.errors.NotFoundError(None, None, "No OpKernel for Op 'ConfigureDistributedTPU'"), "has no TPU support"),
        (URLError("unknown name"), "unknown name"),
    ],
)
def test_a_tpu_that_is_not_there_is_one_line(monkeypatch, error, words):
    def fail(tpu):
        raise error

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", fail)
    with pytest.raises(UserError, match=f"TPU 'mine' can't be used .*{words}.*: check --tpu"):
        make_strategy("tpu", "mine")


@pytest.mark.parametrize(("process", "address"), [(0, "node1:8888"), (1, "node1:8889"), (2, "node2:8888")])
def test_tasks_of_a_slurm_step_are_workers(monkeypatch, process, address):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in {
        "PROCID": str(process),
        "STEP_NUM_TASKS": "3",
        "STEP_NODELIST": "node[1-2]",
        "STEP_TASKS_PER_NODE": "2,1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    cluster = module._cluster()
    assert (cluster.task_type, cluster.task_id) == ("worker", process)
    assert cluster.cluster_spec().task_address("worker", process) == address
    assert cluster.cluster_spec().num_tasks("worker") == 3 and cluster.num_accelerators() == {"GPU": 0}


def test_the_only_process_is_the_chief():
    strategy = make_strategy("mirrored")
    assert is_chief(strategy) and of_chief(strategy, 7) == 7


class Host:
    """The strategy of one of several hosts."""

    def __init__(self, host):
        self.context = tf.distribute.InputContext(num_input_pipelines=2, input_pipeline_id=host, num_replicas_in_sync=8)

    def distribute_datasets_from_function(self, read):
        return read(self.context)


@pytest.mark.parametrize("host", [0, 1])
def test_a_host_reads_the_rows_of_its_own_replicas(host):
    asked = []

    def read(share):
        asked.append(share)
        return tf.data.Dataset.range(3)

    batches = distribute_batches(Host(host), read)
    assert asked == [Share(4 * host, 4, 8)] and batches.cardinality() == tf.data.INFINITE_CARDINALITY


def test_the_failure_of_another_worker_is_one_line():
    with pytest.raises(UserError, match="another worker has ended: see what it says"), end_with_others():
        raise tf.errors.UnavailableError(None, None, "The following tasks are unhealthy\nand more")
    with pytest.raises(ValueError, match="own"), end_with_others():
        raise ValueError("its own")
