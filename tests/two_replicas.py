"""`python -m tf_rnnt_kd.train` on two logical CPUs: two replicas for `--strategy mirrored`."""

from tf_rnnt_kd.errors import run_command


def main(argv):
    import tensorflow as tf

    from tf_rnnt_kd import train

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    train.main(argv)


if __name__ == "__main__":
    from tf_rnnt_kd import train  # noqa: F401  # its flags, before they are parsed

    run_command(main)
