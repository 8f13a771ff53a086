"""Losses: pure functions from tensors to [B], float32, in nats."""

from tf_rnnt_kd.losses.distillation import collapsed_lattice_kl, lattice_kl
from tf_rnnt_kd.losses.joint_tiles import JointInputs, joint_tile_losses
from tf_rnnt_kd.losses.transducer import best_alignment, transducer_loss

__all__ = [
    "JointInputs",
    "best_alignment",
    "collapsed_lattice_kl",
    "joint_tile_losses",
    "lattice_kl",
    "transducer_loss",
]
