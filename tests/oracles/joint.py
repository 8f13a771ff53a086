"""The joint network and both losses from its inputs, in float64, with finite differences."""

from collections.abc import Callable, Sequence

import numpy as np


def logits(encoded: np.ndarray, predicted: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`tanh(encoded_t + predicted_u) @ kernel + bias`: [T, U+1, V] of one utterance."""
    return np.tanh(encoded[:, None, :] + predicted[None, :, :]) @ kernel + bias


def finite_differences(
    function: Callable[..., float], arguments: Sequence[np.ndarray], step: float = 1e-5
) -> list[np.ndarray]:
    """Central differences of a scalar function by every element of every argument."""
    arguments = [np.array(values, np.float64) for values in arguments]
    gradients = [np.zeros_like(values) for values in arguments]
    for values, gradient in zip(arguments, gradients, strict=True):
        for index in np.ndindex(values.shape):
            middle = values[index]
            values[index] = middle + step
            upper = function(*arguments)
            values[index] = middle - step
            gradient[index] = (upper - function(*arguments)) / (2 * step)
            values[index] = middle
    return gradients
