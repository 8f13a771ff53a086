"""Losses: pure functions from tensors to [B], float32, in nats."""

from tf_rnnt_kd.losses.alignments import Arcs, alignment_entropy, full_sum_distance, sequence_kl
from tf_rnnt_kd.losses.distillation import collapsed_lattice_kl, lattice_kl
from tf_rnnt_kd.losses.joint_losses import (
    JointLosses,
    JointLossSum,
    LossWeights,
    joint_loss_sum,
    joint_losses,
    joint_tile_losses,
)
from tf_rnnt_kd.losses.joint_tiles import JointInputs
from tf_rnnt_kd.losses.pruning import AdditiveJoint, BandLosses, band_losses
from tf_rnnt_kd.losses.readings import DISTANCES, closest_delay
from tf_rnnt_kd.losses.transducer import best_alignment, transducer_loss

__all__ = [
    "DISTANCES",
    "AdditiveJoint",
    "Arcs",
    "BandLosses",
    "JointInputs",
    "JointLossSum",
    "JointLosses",
    "LossWeights",
    "alignment_entropy",
    "band_losses",
    "best_alignment",
    "closest_delay",
    "collapsed_lattice_kl",
    "full_sum_distance",
    "joint_loss_sum",
    "joint_losses",
    "joint_tile_losses",
    "lattice_kl",
    "sequence_kl",
    "transducer_loss",
]
