"""On which devices to train."""

import tensorflow as tf

from tf_rnnt_kd.errors import UserError

STRATEGIES = ("auto", "tpu", "mirrored", "multiworker", "one_device")


def check_name(name: str) -> None:
    """Raises UserError where `name` is no strategy: known before anything is prepared."""
    if name not in STRATEGIES:
        raise UserError(f"unknown strategy {name!r}: --strategy is one of {', '.join(STRATEGIES)}")


def make_strategy(name: str = "auto", tpu: str | None = None) -> tf.distribute.Strategy:
    """Builds the `tf.distribute` strategy that a flag names.

    Args:
      name: `tpu` (TPUStrategy over the TPU named by `tpu`; "local" on a TPU VM), `mirrored` (all local GPUs or logical
        CPUs), `multiworker` (TF_CONFIG or Slurm), `one_device`, or `auto`: TPU if one is named, all GPUs if there are
        several, else one device.
      tpu: name or address of a TPU.

    Raises:
      UserError: for an unknown name, or a TPU that can't be reached.
    """
    check_name(name)
    if name == "auto":
        name = "tpu" if tpu else "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"
    return _BUILDERS[name](tpu)


def _tpu(tpu):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError, SystemError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"TPU {tpu or 'local'!r} can't be used ({reason}): check --tpu and the TPU's state") from error


def _one_device(_):
    return tf.distribute.OneDeviceStrategy("/gpu:0" if tf.config.list_physical_devices("GPU") else "/cpu:0")


_BUILDERS = {
    "tpu": _tpu,
    "mirrored": lambda _: tf.distribute.MirroredStrategy(_logical_devices()),
    "multiworker": lambda _: tf.distribute.MultiWorkerMirroredStrategy(),
    "one_device": _one_device,
}


def _logical_devices():
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return [device.name for device in tf.config.list_logical_devices(kind)]
