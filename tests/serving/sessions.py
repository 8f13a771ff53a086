"""A server of sessions that share a batch, each at its own pace, over the signatures of an export."""

import numpy as np
import tensorflow as tf


def initial_state(signatures, num_rows):
    return {name: tf.repeat(x, num_rows, axis=0) for name, x in signatures["initial_state"]().items()}


def step(signatures, state, chunks, *, reset=(), flush=(), room=0):
    """One call for [n] samples of each row; NaN fills what no row has. Rows are reset and flushed by number."""
    lengths = [len(chunk) for chunk in chunks]
    samples = np.full([len(chunks), max(lengths) + room], np.nan, np.float32)
    for row, chunk in zip(samples, chunks, strict=True):
        row[: len(chunk)] = chunk
    rows = np.arange(len(chunks))
    heard = signatures["step_sessions"](
        samples=tf.constant(samples),
        num_samples=tf.constant(lengths, tf.int32),
        reset=tf.constant(np.isin(rows, list(reset))),
        flush=tf.constant(np.isin(rows, list(flush))),
        **state,
    )
    return heard, {name: heard[name] for name in state}


def serve(signatures, utterances, *, num_rows, seed, longest=20_000):
    """Texts of utterances: each row takes one after the other, in bits of any size, and ends them when it likes."""
    rng = np.random.default_rng(seed)
    texts, waiting, rows = [b""] * len(utterances), list(range(len(utterances))), [None] * num_rows
    state = initial_state(signatures, num_rows)
    while waiting or any(row is not None for row in rows):
        reset = [row for row in range(num_rows) if rows[row] is None and waiting and rng.random() < 0.7]
        for row in reset:
            rows[row] = (waiting.pop(0), 0)
        chunks, flush = _hear(rows, utterances, rng, longest)
        heard, state = step(signatures, state, chunks, reset=reset, flush=flush, room=int(rng.integers(0, 500)))
        assert not any(heard["error"].numpy())
        for row in (row for row in range(num_rows) if rows[row] is not None):
            texts[rows[row][0]] += heard["text"].numpy()[row]
            rows[row] = None if row in flush else rows[row]
    return [text.decode().strip() for text in texts]


def _hear(rows, utterances, rng, longest):
    """The next samples of each row, and the rows that end with them; moves the rows on."""
    chunks, flush = [np.zeros([0], np.float32) for _ in rows], []
    for row, (utterance, start) in ((i, speaking) for i, speaking in enumerate(rows) if speaking is not None):
        chunks[row] = utterances[utterance][start : start + int(rng.choice([0, 1, rng.integers(longest)]))]
        rows[row] = (utterance, start + len(chunks[row]))
        if rows[row][1] == len(utterances[utterance]) and rng.random() < 0.7:
            flush.append(row)
    return chunks, flush
