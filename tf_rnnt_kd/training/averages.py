"""The averages of weights that training keeps, in place of the weights."""

import contextlib
from collections.abc import Iterator

from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.training.step import ReducedAdamW


def take_averages(model: Transducer, optimizer: ReducedAdamW) -> None:
    """Gives the model its averaged weights for good; nothing changes where none are kept."""
    optimizer.finalize_variable_values(model.trainable_variables)


@contextlib.contextmanager
def averaged(model: Transducer, optimizer: ReducedAdamW) -> Iterator[None]:
    """The model with its averaged weights, those of training back afterwards; in between the latter are on the host."""
    if not optimizer.use_ema:
        yield
        return
    weights = [variable.numpy() for variable in model.trainable_variables]
    take_averages(model, optimizer)
    try:
        yield
    finally:
        for variable, weight in zip(model.trainable_variables, weights, strict=True):
            variable.assign(weight)
