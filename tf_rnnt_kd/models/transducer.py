"""The transducer: encoder, prediction network, joint, and an auxiliary CTC head."""

from typing import Annotated

import keras
import tensorflow as tf
from annotated_types import Ge

from tf_rnnt_kd.models.conformer import ConformerEncoder
from tf_rnnt_kd.models.joint import Joint
from tf_rnnt_kd.models.prediction import START_ID, PredictionNetwork
from tf_rnnt_kd.models.second_pass import SecondPass
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.options import Count, CountOrZero, FractionBelowOne, checked

NUM_FEATURE_BINS = 80


@checked
class Transducer(keras.Model):
    """P(y | x) over the lattice of frames and labels (Graves 2012), built and ready after construction.

    Args:
      vocabulary_size: V, blank included; blank is id 0.
      encoder: a `ConformerEncoder`, not shared with another model.
      prediction_width: LSTM width; also that of the label embedding.
      prediction_layers: LSTM layers.
      joint_width: D, the width that enters the joint's tanh.
      dropout: on the label embedding.
      has_additive_joint: whether to train a second, additive joint network, which finds the band of `Objective.band`.
      second_pass_blocks: full-context blocks on top of a causal encoder, otherwise built as that is; 0 for none. Both
        passes share all else, and `training.cascade` trains them together.
      uses_second_pass: whether `encode` gives the second pass; streams always are of the first.
    """

    blank_id = 0

    def __init__(
        self,
        vocabulary_size: Annotated[Count, Ge(2)],
        encoder: ConformerEncoder,
        *,
        prediction_width: Count,
        joint_width: Count,
        prediction_layers: Count = 1,
        dropout: FractionBelowOne = 0.1,
        has_additive_joint: bool = False,
        second_pass_blocks: CountOrZero = 0,
        uses_second_pass: bool = False,
        **kwargs,
    ):
        super().__init__(**{"name": "transducer", **kwargs})
        self.vocabulary_size, self.prediction_width = vocabulary_size, prediction_width
        self.prediction_layers, self.joint_width, self.dropout = prediction_layers, joint_width, dropout
        self.encoder = encoder
        self._check_passes(second_pass_blocks, uses_second_pass)
        self.second_pass_blocks, self.uses_second_pass = second_pass_blocks, uses_second_pass
        self.second_pass = self._make_second_pass() if second_pass_blocks else None
        self.prediction = PredictionNetwork(
            vocabulary_size, prediction_width, prediction_layers, dropout, name="prediction"
        )
        self.joint = Joint(vocabulary_size, joint_width, name="joint")
        self.ctc_head = keras.layers.Dense(vocabulary_size, dtype="float32", name="ctc_head")
        self.has_additive_joint = has_additive_joint
        if has_additive_joint:
            self.acoustic_head = keras.layers.Dense(vocabulary_size, dtype="float32", name="acoustic_head")
            self.linguistic_head = keras.layers.Dense(vocabulary_size, dtype="float32", name="linguistic_head")
        self.build((None, None, NUM_FEATURE_BINS))

    def _check_passes(self, blocks, uses_second):
        if blocks and not self.encoder.causal:
            raise ValueError("second_pass_blocks go on top of a causal encoder: a full-context one has heard all")
        if uses_second and not blocks:
            raise ValueError("uses_second_pass needs second_pass_blocks")

    def _make_second_pass(self):
        encoder = self.encoder
        return SecondPass(
            encoder.width,
            self.second_pass_blocks,
            encoder.num_heads,
            encoder.kernel_size,
            encoder.dropout,
            encoder.rematerialise,
        )

    def build(self, features_shape):
        self.encoder.build(features_shape)
        if self.second_pass is not None:
            self.second_pass.build((None, None, self.encoder.width))
        self.prediction.build((None, None))
        self.joint.build((None, None, self.encoder.width), (None, None, self.prediction_width))
        self.ctc_head.build((None, None, self.joint_width))
        if self.has_additive_joint:
            self.acoustic_head.build((None, None, self.joint_width))
            self.linguistic_head.build((None, None, self.joint_width))

    @property
    def causal(self) -> bool:
        """Whether what `encode` gives can be had from a stream."""
        return self.encoder.causal and not self.uses_second_pass

    @property
    def joint_kernel(self):
        """[D, V]."""
        return self.joint.kernel

    @property
    def joint_bias(self):
        """[V]."""
        return self.joint.bias

    def call(self, features, num_features, labels, training=False):
        """[B, 4T, F], [B], [B, U] -> encoded [B, T, D], num_frames [B], predicted [B, U+1, D]."""
        encoded, num_frames = self.encode(features, num_features, training=training)
        return encoded, num_frames, self.predict_labels(labels, training=training)

    def encode(self, features, num_features, training=False):
        """Frames as they enter the joint's tanh: [B, 4T, F], [B] -> [B, T, D], [B]."""
        frames, num_frames = self.encoder(features, num_features, training=training), num_features // REDUCTION
        if self.uses_second_pass:
            frames = self.second_pass(frames, num_frames, training=training)
        return self.joint.project_encoded(frames), num_frames

    def encode_twice(self, features, num_features, training=False):
        """`encode` of both passes, the first of them run once: [B, 4T, F], [B] -> [B, T, D] twice, [B]."""
        frames, num_frames = self.encoder(features, num_features, training=training), num_features // REDUCTION
        again = self.second_pass(frames, num_frames, training=training)
        return self.joint.project_encoded(frames), self.joint.project_encoded(again), num_frames

    def predict_labels(self, labels, training=False):
        """Label states as they enter the joint's tanh: [B, U] -> [B, U+1, D]."""
        return self.joint.project_predicted(self.prediction(labels, training=training))

    def ctc_logits(self, encoded):
        """The auxiliary head, on the projected frames: [B, T, D] -> [B, T, V] float32."""
        return self.ctc_head(encoded)

    def additive_joint(self, encoded, predicted):
        """What the cheap joint network adds up: [B, T, D], [B, U+1, D] -> [B, T, V], [B, U+1, V] float32."""
        return self.acoustic_head(encoded), self.linguistic_head(predicted)

    def join(self, encoded, predicted):
        """[..., D], [..., D] -> logits [..., V] float32."""
        return self.joint(encoded, predicted)

    # === One label at a time, for search ===

    def initial_prediction(self, batch_size):
        """The state before any label: predicted [B, D] and the LSTM state."""
        start = tf.fill([batch_size], START_ID)
        return self.step_prediction(start, self.prediction.initial_state(batch_size))

    def step_prediction(self, label, state):
        """[B] int32, state -> predicted [B, D], state."""
        hidden, state = self.prediction.step(label, state)
        return self.joint.project_predicted(hidden), state

    # === One chunk at a time, for a causal encoder ===

    def initial_encoder_state(self, batch_size):
        """Flat tuple of tensors, each with the batch first."""
        return self.encoder.initial_state(batch_size)

    def stream(self, features, state, num_frames=None):
        """[B, 4n, F], state, [B] -> projected frames [B, n, D], state; see `ConformerEncoder.stream`."""
        frames, state = self.encoder.stream(features, state, num_frames)
        return self.joint.project_encoded(frames), state

    def get_config(self):
        return {
            "vocabulary_size": self.vocabulary_size,
            "encoder": self.encoder.get_config(),
            "prediction_width": self.prediction_width,
            "prediction_layers": self.prediction_layers,
            "joint_width": self.joint_width,
            "dropout": self.dropout,
            "has_additive_joint": self.has_additive_joint,
            "second_pass_blocks": self.second_pass_blocks,
            "uses_second_pass": self.uses_second_pass,
        }

    @classmethod
    def from_config(cls, config):
        """The architecture that `get_config` described, with new weights, at its own precision, not the process's."""
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(keras.dtype_policies.deserialize(config["encoder"]["dtype"]))
        try:
            return cls(**{**config, "encoder": ConformerEncoder.from_config(config["encoder"])})
        finally:
            keras.config.set_dtype_policy(policy)
