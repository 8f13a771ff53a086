"""Conformer S with random weights, for benchmarks: this package's, and TensorFlowASR's of the same size."""

import pathlib
import types

VOCABULARY, SAMPLE_RATE = 1024, 16_000
_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Its `small` configuration, and its `small-streaming` one with LayerNorm and a memory in place of biases in attention;
# the width of prediction and joint network is the paper's.
_PEER = {
    "speech_config": {"sample_rate": SAMPLE_RATE, "frame_ms": 25, "stride_ms": 10, "nfft": 512}
    | {"num_feature_bins": 80, "feature_type": "log_mel_spectrogram"},
    "encoder_subsampling": {
        "class_name": "tensorflow_asr.models.layers.subsampling>Conv2dSubsampling",
        "config": {"filters": [144, 144], "kernels": [3, 3], "strides": [2, 2], "paddings": ["causal"] * 2}
        | {"norms": ["batch"] * 2, "activations": ["swish"] * 2},
    },
    "encoder_kernel_size": 32,
    "prediction_embed_dim": 320,
    "joint_dim": 320,
}
_PEER_STREAM = {"encoder_convm_dw_norm_type": "layer", "encoder_memory_length": 64, "encoder_chunk_size": 16}


def our_conformer(streaming: bool = False):
    """This package's, of `configs/models/s.gin`."""
    from tf_rnnt_kd.config import load_factory
    from tf_rnnt_kd.models.transducer import Transducer

    paths = ["configs/models/s.gin", "configs/models/streaming.gin"]
    return load_factory(paths, Transducer, "streaming" if streaming else "")(VOCABULARY)


def peer_conformer(streaming: bool = False):
    """TensorFlowASR's, not yet made for a batch size."""
    from tensorflow_asr.models.transducer.conformer import Conformer

    options = _PEER_STREAM if streaming else {"encoder_mhsam_use_attention_bias": True}
    model = Conformer(blank=0, vocab_size=VOCABULARY, **_PEER, **options)
    object.__setattr__(model, "_tokenizer", types.SimpleNamespace(blank=0))
    return model
