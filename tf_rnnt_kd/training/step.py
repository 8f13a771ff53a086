"""One update of the student on all replicas."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tf_rnnt_kd.batch import Batch
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.training.objective import Objective, TeacherJoint

_SEED_STRIDE = 1_000_003  # between the dropout seeds of two replicas


class ReducedAdamW(keras.optimizers.AdamW):
    """AdamW for gradients that are already summed over replicas, which makes an update or leaves no trace of it.

    Clipping by the global norm has to come after the sum, or the update would depend on the number of replicas; so the
    step sums and clips, and the optimizer must not sum again. Biases and norms have no weight decay. A variable's
    update is one operation of TensorFlow in place of Keras' thirty: half of a step's graph would be Adam's.

    Args:
      learning_rate: number or schedule, of the updates made.
      rates: a variable's learning rate in units of `learning_rate`, by its path; 1 where it is not named. Decay is
        `weight_decay * learning_rate` for all.
      options: of `keras.optimizers.AdamW`, without `amsgrad`.
    """

    def __init__(self, learning_rate, *, rates: dict[str, float] | None = None, **options):
        super().__init__(learning_rate, **options)
        self._rates = rates or {}

    def build(self, variables):
        """Builds the moments, and averages that begin as the weights; vectors are left out of the decay."""
        super().build(variables)
        self._rate_of = [self._rates.get(v.path, 1.0) for v in variables]
        self._decay_of = [self.weight_decay if len(v.shape) > 1 else 0.0 for v in variables]
        if self.use_ema:
            for variable, average in zip(variables, self._model_variables_moving_average, strict=True):
                average.assign(variable)

    def apply(self, grads, trainable_variables, made: bool | tf.Tensor = True):
        """Makes an update, or none: then weights, moments, averages and `iterations` stay as they are, to the bit.

        It is not made by arithmetic: rates are 0 and decays of moments and averages 1. A branch is not allowed inside a
        replica, and would have an accelerator wait for the host.

        Args:
          grads: tensors, in the order of the variables; anything where no update is made.
          trainable_variables: those that the optimizer was built on.
          made: scalar boolean, the same on all replicas.
        """
        made = tf.convert_to_tensor(made)
        # -1e18 * (1 - 1) is -0: added to a moment it keeps even the sign of a zero.
        nothing = tf.constant(-1e18)
        grads = [tf.where(made, gradient, nothing) for gradient in grads]
        variables = [v.value if isinstance(v, keras.Variable) else v for v in trainable_variables]
        step, rate = (
            tf.cast(self.iterations + 1, tf.float32),
            tf.where(made, tf.cast(self.learning_rate, tf.float32), 0.0),
        )
        beta1, beta2, epsilon = tf.unstack(tf.constant([self.beta_1, self.beta_2, self.epsilon]))
        scalars = {"beta1_power": beta1**step, "beta2_power": beta2**step, "epsilon": epsilon}
        scalars |= {"beta1": tf.where(made, beta1, 1.0), "beta2": tf.where(made, beta2, 1.0)}
        rates = {units: rate if units == 1.0 else units * rate for units in set(self._rate_of)}
        decays = {decay: decay * rate for decay in set(self._decay_of)}
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._update_all,
            self._distribution_strategy,
            grads,
            variables,
            scalars,
            rates,
            decays,
            self._momentum(made),
        )
        self.iterations.assign_add(tf.cast(made, self.iterations.dtype))

    def _momentum(self, made):
        """Of the averages, which the first update sets; None where none are kept."""
        if not self.use_ema:
            return None
        momentum = tf.where(tf.equal(tf.convert_to_tensor(self.iterations), 0), 0.0, self.ema_momentum)
        return tf.where(made, momentum, 1.0)

    def _update_all(self, distribution, gradients, variables, scalars, rates, decays, momentum):
        for gradient, variable in zip(gradients, variables, strict=True):
            index = self._get_variable_index(variable)
            decay = decays[self._decay_of[index]] if self._decay_of[index] else None
            args = index, gradient, scalars, rates[self._rate_of[index]], decay, momentum
            distribution.extended.update(variable, self._update, args=args, group=False)

    def _update(self, variable, index, gradient, scalars, rate, decay, momentum):
        if decay is not None:
            variable.assign_sub(decay * variable)
        moments = {"m": self._momentums[index].value.handle, "v": self._velocities[index].value.handle}
        tf.raw_ops.ResourceApplyAdam(var=variable.handle, **moments, lr=rate, grad=gradient, **scalars)
        if momentum is not None:
            average = self._model_variables_moving_average[index].value
            average.assign(momentum * average + (1.0 - momentum) * variable)


def decoder_rates(model: Transducer, rate: float) -> dict[str, float]:
    """`rate` for each weight of the prediction and the joint network."""
    return {v.path: rate for part in (model.prediction, model.joint) for v in part.trainable_variables}


def check_undivided(
    where: str, objective: Objective, accumulation: int, jit_compile: bool, num_replicas: int = 1
) -> None:
    """Raises UserError where something is to be decided over a batch whose parts don't meet before it is.

    Replicas meet within a step, except inside what XLA compiles by itself; micro-batches come one after the other.

    Args:
      where: what the error names first.
      objective: what to minimise.
      accumulation: micro-batches of a replica.
      jit_compile: whether forward and backward are compiled.
      num_replicas: among which a batch is divided.
    """
    names = " and ".join(getattr(objective, "whole_batch", ()))
    if not names or (accumulation == 1 and not (jit_compile and num_replicas > 1)):
        return
    divided, remedy = f"accumulation = {accumulation} divides", "accumulation = 1"
    if accumulation == 1:
        divided, remedy = f"jit_compile on {num_replicas} replicas divides", "jit_compile = False"
    raise UserError(
        f"{where}: {names}: decided over the whole batch, which Training.{divided}; set Training.{remedy}, or a single "
        "teacher_delay and acoustic_scale = 0"
    )


def make_train_step(
    model: Transducer,
    optimizer: ReducedAdamW,
    objective: Objective,
    teacher_joint: TeacherJoint | None,
    *,
    clip_norm: float,
    jit_compile: bool = False,
    accumulation: int = 1,
    l2: float = 0.0,
    noise: Callable | None = None,
):
    """Returns `step(strategy, batch) -> metrics`, the whole update in one `tf.function` without retracing.

    Metrics are float32 scalars of the global batch: each loss per label, a KL also per node, the gradient's norm before
    clipping, and 1 where the update was skipped because a gradient was not finite. A skipped update leaves the model
    (its dropout's seeds too) and the optimizer as they were, to the bit.

    Args:
      model: the student, built.
      optimizer: built on `model.trainable_variables`.
      objective: what to minimise.
      teacher_joint: of factored targets.
      clip_norm: the gradient's global norm is at most this.
      jit_compile: compile forward and backward with XLA, once for each bucket shape.
      accumulation: micro-batches that a replica's rows are divided into, one after the other: memory of one of them.
      l2: adds the gradient of `l2 / 2 * sum w^2` over matrices, before clipping; no metric shows it.
      noise: see `weight_noise`; None for none.

    Raises:
      UserError: as `check_undivided`, for replicas by the step.
    """
    check_undivided("the training step", objective, accumulation, jit_compile)
    compiled = jit_compile or bool(tf.config.list_logical_devices("TPU"))
    variables = [variable.value for variable in model.trainable_variables]
    seeds = [v.value for v in model.non_trainable_variables if "seed_generator" in v.path]

    def gradients(batch: Batch, num_labels):
        with tf.GradientTape() as tape:
            sums = objective(model, batch, teacher_joint, compiled=compiled)
            loss = sums["total"] / num_labels
        return sums, tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    if jit_compile or accumulation > 1:
        gradients = tf.function(gradients, jit_compile=jit_compile, autograph=False)
    if accumulation > 1:
        gradients = _accumulated(gradients, accumulation)
    if noise is not None:
        gradients = _with_noise(gradients, variables, lambda: noise(tf.convert_to_tensor(optimizer.iterations)))

    def replica_step(batch: Batch):
        context = tf.distribute.get_replica_context()
        num_labels = tf.reduce_sum(tf.cast(batch.num_labels, tf.float32))
        num_labels = tf.maximum(context.all_reduce(tf.distribute.ReduceOp.SUM, num_labels), 1.0)
        before = list(map(tf.identity, seeds))
        _shift_seeds(seeds, context, 1)
        sums, grads = gradients(batch, num_labels)
        _shift_seeds(seeds, context, -1)
        sums["seconds"] = tf.reduce_sum(tf.cast(batch.num_features, tf.float32)) / 100.0
        sums, grads = context.all_reduce(tf.distribute.ReduceOp.SUM, [sums, grads])
        if l2:
            grads = [g + l2 * v if len(v.shape) > 1 else g for g, v in zip(grads, variables, strict=True)]
        norm = tf.linalg.global_norm(grads)
        finite, scale = tf.math.is_finite(norm), clip_norm / tf.maximum(norm, clip_norm)
        _keep_seeds(seeds, before, finite)
        optimizer.apply([scale * g for g in grads], model.trainable_variables, finite)
        return _metrics(sums, norm, finite)

    def step(strategy, batch):
        check_undivided("the training step", objective, accumulation, jit_compile, strategy.num_replicas_in_sync)
        per_replica = strategy.run(replica_step, args=(batch,))
        return {name: strategy.experimental_local_results(value)[0] for name, value in per_replica.items()}

    return step


def weight_noise(variables: Sequence, deviation: float, first_step: int, seed: int) -> Callable:
    """Variational noise: a function from the step to what is added to each matrix while its gradient is computed.

    `N(0, deviation^2)`, the same on all replicas and after a restart; None for vectors.

    Args:
      variables: the model's trainable ones.
      deviation: of the noise.
      first_step: there is none before.
      seed: of the run.

    References:
      Graves 2011, Practical variational inference for neural networks, with one fixed deviation for all weights.
    """

    def draw(step: tf.Tensor) -> list[tf.Tensor | None]:
        step = tf.cast(step, tf.int32)
        scale = tf.where(step < first_step, 0.0, deviation)
        at = tf.stack([seed, step])
        return [
            scale * tf.random.stateless_normal(v.shape, tf.random.fold_in(at, i)) if len(v.shape) > 1 else None
            for i, v in enumerate(variables)
        ]

    return draw


def _with_noise(gradients, variables, draw):
    """`gradients` at weights that are moved for the moment, and put back to the bit."""

    def at_noisy_weights(batch, num_labels):
        moved = [(v, tf.identity(v), noise) for v, noise in zip(variables, draw(), strict=True) if noise is not None]
        for variable, clean, noise in moved:
            variable.assign(clean + noise)
        found = gradients(batch, num_labels)
        for variable, clean, _ in moved:
            variable.assign(clean)
        return found

    return at_noisy_weights


def _accumulated(gradients, count):
    """The sums of `gradients` over `count` micro-batches: a loop of our own, as Keras' does not run on replicas."""

    def over_parts(batch, num_labels):
        parts = tf.nest.map_structure(
            lambda v: tf.reshape(v, tf.concat([[count, tf.shape(v)[0] // count], tf.shape(v)[1:]], 0)), batch
        )

        def of_part(i):
            return gradients(tf.nest.map_structure(lambda v: v[i], parts), num_labels)

        def add(i, total):
            return i + 1, tf.nest.map_structure(tf.add, total, of_part(i))

        return tf.while_loop(lambda i, _: i < count, add, (tf.constant(1), of_part(0)))[1]

    return over_parts


def _shift_seeds(seeds, context, sign):
    """Other dropout on each replica, without a state of its own that a checkpoint would have to keep."""
    if context.num_replicas_in_sync > 1:
        shift = sign * _SEED_STRIDE * tf.cast(context.replica_id_in_sync_group, tf.int64)
        for seed in seeds:
            seed.assign(seed + tf.cast(tf.stack([shift, 0]), seed.dtype))


def _keep_seeds(seeds, before, moved):
    for seed, old in zip(seeds, before, strict=True):
        seed.assign(tf.where(moved, seed, old))


def _metrics(sums, norm, finite):
    terms = {name for name in sums if not name.endswith(("labels", "_nodes"))} - {"total", "seconds"}

    def mean(name, divisor):
        return sums[name] / tf.maximum(sums.get(divisor, sums["labels"]), 1.0)

    return {
        "loss": mean("total", "labels"),
        **{name: mean(name, f"{name}_labels") for name in terms},
        **{f"{name}_per_node": mean(name, f"{name}_nodes") for name in terms if f"{name}_nodes" in sums},
        "seconds": sums["seconds"],
        "gradient_norm": norm,
        "skipped": 1.0 - tf.cast(finite, tf.float32),
    }


def make_call(strategy: tf.distribute.Strategy, step: Callable, steps_per_call: int = 1):
    """Returns `call(iterator, count) -> metrics`, each [count]: several steps of one call, so that the host can rest.

    Any count above one has the same graph, and gives the same bits.

    Args:
      strategy: whose replicas take the steps.
      step: of `make_train_step`.
      steps_per_call: the largest count. If it is 1 there is no loop, which would cost a CPU 200 MB and seconds of
        tracing; TensorFlow optimizes that graph otherwise, and it rounds otherwise.
    """
    names = []

    def once(iterator):
        metrics = step(strategy, next(iterator))
        names[:] = sorted(metrics)
        return tf.stack([metrics[name] for name in names])

    def loop(iterator, count):
        found = tf.TensorArray(tf.float32, size=count, element_shape=[None])
        _, found = tf.while_loop(
            lambda i, _: i < count,
            lambda i, found: (i + 1, found.write(i, once(iterator))),
            (tf.constant(0), found),
            parallel_iterations=1,
        )
        return found.stack()

    def call(iterator, count):
        found = once(iterator)[None] if steps_per_call == 1 else loop(iterator, count)
        return dict(zip(names, tf.unstack(found, num=len(names), axis=1), strict=True))

    return tf.function(call, autograph=False)
