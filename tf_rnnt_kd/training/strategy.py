"""On which devices to train, and what is whose part where several processes train together."""

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator

import tensorflow as tf

from tf_rnnt_kd.data.pipeline import Share
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.preemption import listen
from tf_rnnt_kd.progress import say

STRATEGIES = ("auto", "tpu", "mirrored", "multiworker", "one_device")


def check_name(name: str) -> None:
    """Raises UserError where `name` is no strategy: known before anything is prepared."""
    if name not in STRATEGIES:
        raise UserError(f"unknown strategy {name!r}: --strategy is one of {', '.join(STRATEGIES)}")


def make_strategy(name: str = "auto", tpu: str | None = None) -> tf.distribute.Strategy:
    """Builds the `tf.distribute` strategy that a flag names.

    Args:
      name: `tpu` (TPUStrategy over the TPU named by `tpu`; "local" on a TPU VM), `mirrored` (all local GPUs or logical
        CPUs), `multiworker` (several processes, told of each other by TF_CONFIG or as tasks of a Slurm step; made
        before anything is computed), `one_device`, or `auto`: TPU if one is named, all GPUs if there are several, else
        one device.
      tpu: name or address of a TPU.

    Raises:
      UserError: for an unknown name, a TPU that can't be reached, or workers that are not told of each other.
    """
    check_name(name)
    if name == "auto":
        name = "tpu" if tpu else "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"
    return _BUILDERS[name](tpu)


def count_replicas(name: str, tpu: str | None = None) -> int:
    """Among how many replicas `make_strategy` divides a batch; 1 where only a TPU or the other workers know."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    if name == "mirrored":
        return len(_logical_devices())
    return gpus if name == "auto" and not tpu and gpus > 1 else 1


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes what is written once: the first of several workers, or the only one."""
    return _rank(strategy)[0] == 0


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """How many processes train together."""
    return _rank(strategy)[1]


def of_chief(strategy: tf.distribute.Strategy, number: int) -> int:
    """The chief's number in all workers, which wait for each other here; in one process the number itself."""
    return total_of_workers(strategy, number if is_chief(strategy) else 0)


def total_of_workers(strategy: tf.distribute.Strategy, number: int) -> int:
    """The sum of the numbers of all workers, which wait for each other here; in one process the number itself."""
    count = num_workers(strategy)
    if count == 1:
        return number
    # Every replica of a worker gives its number.
    return int(_adder(strategy)(tf.constant(number, tf.int64))) // (strategy.num_replicas_in_sync // count)


@functools.cache
def _adder(strategy):
    """Traced once a strategy."""

    @tf.function(autograph=False)
    def add(number):
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(number,)), axis=None)

    return add


@contextlib.contextmanager
def end_with_others() -> Iterator[None]:
    """Says in one line that another worker has failed, which is all that TensorFlow knows of it here."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise UserError("another worker has ended: see what it says, then start all of them again") from error


def distribute_batches(strategy: tf.distribute.Strategy, read: Callable[[Share], tf.data.Dataset]):
    """A distributed dataset of `Batch`, for which each host reads its own replicas' rows alone.

    Args:
      strategy: whose replicas are fed.
      read: the pipeline of a host, see `read_batches`.
    """

    def read_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        count = context.num_replicas_in_sync // context.num_input_pipelines
        share = Share(context.input_pipeline_id * count, count, context.num_replicas_in_sync)
        # Endless, so that TensorFlow has no last, partial batch to look out for; the step says when to stop.
        return read(share).repeat()

    return strategy.distribute_datasets_from_function(read_host)


def _rank(strategy):
    """(number of this process, number of processes)."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    tasks = [(kind, i) for kind, each in sorted(resolver.cluster_spec().as_dict().items()) for i in range(len(each))]
    return tasks.index((resolver.task_type, resolver.task_id)), len(tasks)  # "chief" comes before "worker"


def _multiworker(_):
    try:
        cluster = _cluster()
        workers = ", ".join(address for each in cluster.cluster_spec().as_dict().values() for address in each)
        say(f"  joining the workers {workers}: nothing happens until all of them are there")
        with _mortal():
            strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster)
    except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the workers can't be joined ({reason}): check TF_CONFIG, or the Slurm step") from error
    listen()  # TensorFlow's coordination service has taken SIGTERM for itself
    return strategy


@contextlib.contextmanager
def _mortal() -> Iterator[None]:
    """Within, Ctrl-C ends the process at once: Python's own handler waits until TensorFlow comes back."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cluster():
    resolvers = tf.distribute.cluster_resolver
    if os.environ.get("TF_CONFIG"):
        return resolvers.TFConfigClusterResolver()
    if "SLURM_STEP_NODELIST" not in os.environ:
        raise UserError(
            "--strategy multiworker needs TF_CONFIG in every process's environment, or the tasks of a Slurm step (srun)"
        )
    # Asked for hosts and ports alone: for its GPUs it counts on nvidia-smi, and Slurm has given each task its own.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    slurm = resolvers.SlurmClusterResolver(gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)
    spec, (kind, task) = slurm.cluster_spec(), slurm.get_task_info()
    gpus = len(tf.config.list_physical_devices("GPU"))
    return resolvers.SimpleClusterResolver(
        spec, task_type=kind, task_id=task, num_accelerators={"GPU": gpus}, rpc_layer="grpc"
    )


def _tpu(tpu):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError, SystemError, OSError) as error:
        reason = str(error).splitlines()[0]
        if "ConfigureDistributedTPU" in reason:
            reason = "this TensorFlow has no TPU support: install tensorflow-tpu, as the README says"
        raise UserError(f"TPU {tpu or 'local'!r} can't be used ({reason}): check --tpu and the TPU's state") from error


def _one_device(_):
    return tf.distribute.OneDeviceStrategy("/gpu:0" if tf.config.list_physical_devices("GPU") else "/cpu:0")


_BUILDERS = {
    "tpu": _tpu,
    "mirrored": lambda _: tf.distribute.MirroredStrategy(_logical_devices()),
    "multiworker": _multiworker,
    "one_device": _one_device,
}


def _logical_devices():
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return [device.name for device in tf.config.list_logical_devices(kind)]
