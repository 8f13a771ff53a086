"""Learning rates as functions of the step."""

import keras
import tensorflow as tf

from tf_rnnt_kd.options import Count, CountOrZero, Fraction, Positive, checked


@checked
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear rise, flat top, cosine fall.

        lr(n) = peak · n / warmup                                    n < warmup
        lr(n) = peak                                                 n < hold
        lr(n) = peak · (f + (1 - f) (1 + cos(π (n - hold) / (steps - hold))) / 2)   otherwise, f = final_fraction

    Args:
      peak: highest rate.
      steps: n at which the fall ends.
      warmup: steps of the rise.
      hold_fraction: hold = max(warmup, hold_fraction · steps).
      final_fraction: f.
    """

    def __init__(
        self,
        peak: Positive,
        steps: Count,
        warmup: CountOrZero,
        hold_fraction: Fraction = 0.3,
        final_fraction: Fraction = 0.02,
    ):
        self.peak, self.steps, self.warmup = peak, steps, warmup
        self.hold_fraction, self.final_fraction = hold_fraction, final_fraction

    def __call__(self, step):
        step = tf.cast(step, tf.float32) + 1.0  # the first update has a rate above zero
        hold = max(float(self.warmup), self.hold_fraction * self.steps)
        rise = step / max(self.warmup, 1)
        progress = tf.clip_by_value((step - hold) / max(self.steps - hold, 1.0), 0.0, 1.0)
        fall = self.final_fraction + (1.0 - self.final_fraction) * 0.5 * (1.0 + tf.cos(3.141592653589793 * progress))
        return self.peak * tf.minimum(rise, fall)

    def get_config(self):
        return {
            "peak": self.peak,
            "steps": self.steps,
            "warmup": self.warmup,
            "hold_fraction": self.hold_fraction,
            "final_fraction": self.final_fraction,
        }


@checked
class TransformerDecay(keras.optimizers.schedules.LearningRateSchedule):
    """`lr(n) = peak · min(n / warmup, sqrt(warmup / n))`, Vaswani et al. 2017; what the large configs use.

    Args:
      peak: highest rate, reached at `warmup`.
      warmup: steps of the linear rise.
    """

    def __init__(self, peak: Positive, warmup: Count):
        self.peak, self.warmup = peak, warmup

    def __call__(self, step):
        step = tf.cast(step, tf.float32) + 1.0
        return self.peak * tf.minimum(step / self.warmup, tf.sqrt(self.warmup / step))

    def get_config(self):
        return {"peak": self.peak, "warmup": self.warmup}
