"""x"""
import dataclasses
from collections.abc import Callable
import numpy as np
SAMPLE_RATE = 16000
@dataclasses.dataclass(frozen=True)
class Utterance:
    id: str
    speaker: str
    text: str | None
    load: Callable[[], np.ndarray]
