"""One training on one device, on two replicas, and on two workers; run as a program by `test_topologies.py`.

python -m tests.training.topologies TOPOLOGY FOLDER RECORDS TARGETS OUTPUT [SERVER …]
"""

import dataclasses
import sys

import numpy as np
import tensorflow as tf

from tests import tiny
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.training.loop import Evaluation, train
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.strategy import make_strategy
from tf_rnnt_kd.training.summaries import Summaries

STEPS = 6


def settings(servers):
    """Everything that could depend on where it runs, but for dropout, whose masks are of a replica's rows."""
    return tiny.training(
        STEPS,
        buckets=dataclasses.replace(tiny.BUCKETS, batch_multiple=4),
        clip_norm=0.5,
        accumulation=2,
        ema_decay=0.8,
        l2=1e-3,
        decoder_rate=0.5,
        variational_noise=0.01,
        first_noisy_step=2,
        labelled_fraction=0.5,
        steps_per_call=2,
        input_servers=servers,
        report_every=1,
        evaluate_every=3,
        checkpoint_every=3,
    )


def main(topology, folder, records, targets, output, *servers):
    if topology == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = make_strategy(topology)
    losses, evaluated = [], []
    Summaries.write_numbers = lambda self, step, numbers: losses.append(numbers)

    def evaluate(model):
        evaluated.append(np.concatenate([np.ravel(v.numpy()) for v in model.trainable_variables]))
        return Evaluation({}, [])

    trained = train(
        "toy",
        lambda: tiny.transducer(dropout=0.0),
        Objective(kl_weight=0.01),
        settings(servers),
        [open_records(records)],
        [open_records(targets)],
        folder=folder,
        seed=5,
        strategy=strategy,
        evaluators=[evaluate],
    )
    weights = [np.ravel(v.numpy()) for v in trained.model.trainable_variables]
    names = ("loss", "transducer", "ctc", "kl", "gradient_norm", "skipped_updates")
    found = {name: [numbers[name] for numbers in losses if name in numbers] for name in names}
    np.savez(output, **found, evaluated=evaluated, weights=np.concatenate(weights))


if __name__ == "__main__":
    main(*sys.argv[1:])
