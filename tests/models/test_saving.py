import json
import os
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.models.layers import dtype_policy
from tf_rnnt_kd import files
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.saving import (
    assign_weights,
    has_second_pass,
    hash_weights,
    load_model,
    read_description,
    read_weights,
    save_model,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, toy_tokenizer):
    """A model and the folder it was saved to; tests copy it before they damage it."""
    model = tiny.talkative(toy_tokenizer.vocabulary_size)
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(model, toy_tokenizer, str(folder))
    return model, folder


@pytest.fixture
def folder(saved, work_dir):
    return shutil.copytree(saved[1], work_dir / "model")


def change_description(folder, **changes):
    path = folder / "model.json"
    description = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
    path.write_bytes(files.dump_signed({**description, **changes}))


def test_a_model_comes_back_exactly(saved, toy_tokenizer):
    model, folder = saved
    loaded, tokenizer = load_model(str(folder))
    assert loaded.get_config() == model.get_config()
    assert tokenizer.hash == toy_tokenizer.hash
    assert [v.path for v in loaded.weights] == [v.path for v in model.weights]
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    features = np.random.default_rng(0).standard_normal([1, 16, 80]).astype(np.float32)
    outputs = [m(features, np.array([16]), np.array([[1, 2]], np.int32))[::2] for m in (model, loaded)]
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_causal_model_comes_back_causal(work_dir, toy_tokenizer):
    model = tiny.transducer(causal=True)
    save_model(model, toy_tokenizer, str(work_dir))
    loaded, _ = load_model(str(work_dir))
    assert loaded.causal and loaded.encoder.left_context == model.encoder.left_context


def test_the_hash_is_that_of_the_weights_and_not_of_the_time(saved, toy_tokenizer, work_dir):
    model, folder = saved
    first = read_description(str(folder))["weights_hash"]
    assert save_model(model, toy_tokenizer, str(work_dir)) == first
    assert first == hash_weights([w.numpy() for w in model.weights])
    changed = [w.numpy() for w in model.weights]
    changed[3].flat[0] = np.nextafter(changed[3].flat[0], np.float32(np.inf))
    assert hash_weights(changed) != first


def test_saving_twice_leaves_the_second_model(work_dir, toy_tokenizer):
    save_model(tiny.transducer(seed=1), toy_tokenizer, str(work_dir))
    second = tiny.transducer(seed=2)
    save_model(second, toy_tokenizer, str(work_dir))
    np.testing.assert_array_equal(load_model(str(work_dir))[0].weights[0], second.weights[0])
    assert not [name for name in os.listdir(work_dir) if name.endswith(".tmp")]


def test_a_model_trained_on_several_chunks_comes_back_with_any_of_them(work_dir, toy_tokenizer):
    save_model(tiny.transducer(causal=True, training_chunks=(1, 2, 4)), toy_tokenizer, str(work_dir))
    loaded = [load_model(str(work_dir), chunk=chunk)[0].encoder for chunk in (None, 1, 4)]
    assert [(encoder.chunk, encoder.training_chunks) for encoder in loaded] == [(c, (1, 2, 4)) for c in (1, 1, 4)]
    with pytest.raises(UserError, match=r"was not trained on chunks of 3 frames: choose from \[1, 2, 4\]"):
        load_model(str(work_dir), chunk=3)


def test_a_cascade_comes_back_in_either_pass(saved, work_dir, toy_tokenizer):
    model = tiny.transducer(causal=True, second_pass_blocks=1)
    save_model(model, toy_tokenizer, str(work_dir))
    assert has_second_pass(str(work_dir)) and not has_second_pass(str(saved[1]))
    features, full = np.random.default_rng(0).standard_normal([1, 16, 80]).astype(np.float32), np.array([16])
    expected = model.encode_twice(features, full)[:2]
    for second, wanted in zip((False, True), expected, strict=True):
        loaded, _ = load_model(str(work_dir), second_pass=second)
        assert loaded.causal is not second
        np.testing.assert_array_equal(loaded.encode(features, full)[0], wanted)
    with pytest.raises(UserError, match="has no second pass: leave out second_pass, or train with second_pass_blocks"):
        load_model(str(saved[1]), second_pass=True)


def test_a_folder_without_description_holds_no_model(folder):
    (folder / "model.json").unlink()
    with pytest.raises(UserError, match=r"no trained model in .*model\.json is missing; train it first"):
        load_model(str(folder))
    with pytest.raises(UserError, match="no trained model"):
        load_model(str(folder / "nowhere"))


@pytest.mark.parametrize("content", ["", "{", "\x00\xff"])
def test_a_damaged_description_is_refused_by_name(folder, content):
    (folder / "model.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"model\.json is damaged"):
        load_model(str(folder))


def test_another_format_is_refused_by_name(folder):
    change_description(folder, format=99)
    with pytest.raises(UserError, match=r"model\.json has format 99, this version reads 2: train it again"):
        load_model(str(folder))


def test_no_flipped_byte_of_the_weights_passes(folder):
    path = folder / "weights.npz"
    content = path.read_bytes()
    expected = [weight for _, weight in read_weights(str(folder))]
    refused = 0
    for position in np.linspace(0, len(content) - 1, 40).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            for ours, (_, theirs) in zip(expected, read_weights(str(folder)), strict=True):
                np.testing.assert_array_equal(ours, theirs)  # a byte that the format does not use
        except UserError as error:
            assert "weights.npz" in str(error)
            refused += 1
    assert refused > 25


def test_truncated_and_missing_weights_are_refused_by_name(folder):
    path = folder / "weights.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights\.npz is damaged: it cannot be read"):
        load_model(str(folder))
    path.unlink()
    with pytest.raises(UserError, match=r"weights\.npz is missing: restore it"):
        load_model(str(folder))


def test_weights_of_another_training_are_refused(folder, toy_tokenizer, work_dir):
    save_model(tiny.transducer(seed=9), toy_tokenizer, str(work_dir / "other"))
    shutil.copy(work_dir / "other" / "weights.npz", folder / "weights.npz")
    with pytest.raises(UserError, match=r"weights\.npz is damaged: its hash is not that in model\.json"):
        load_model(str(folder))


def test_another_tokenizer_is_refused(folder, work_dir):
    from tf_rnnt_kd.text.tokenizer import train_tokenizer

    shutil.rmtree(folder / "tokenizer")
    train_tokenizer(["SOME OTHER TEXT"], str(folder / "tokenizer"), kind="characters", vocabulary_size=None)
    with pytest.raises(UserError, match="is not the tokenizer this model was trained with"):
        load_model(str(folder))


def test_weights_of_another_architecture_are_refused_by_name_before_any_is_copied(saved):
    weights = read_weights(str(saved[1]))
    wider = tiny.transducer(joint_width=13)
    before = [w.numpy() for w in wider.weights]
    with pytest.raises(UserError, match=r"teacher is of another architecture: its .*joint.* is .*joint.* here"):
        assign_weights(wider, weights, "teacher")
    deeper = tiny.transducer(num_blocks=2)
    with pytest.raises(UserError, match="teacher is of another architecture: its .*block_1"):
        assign_weights(saved[0], [(v.path, v.numpy()) for v in deeper.weights], "teacher")
    with pytest.raises(UserError, match=r"it has \d+ weights, this model \d+"):
        assign_weights(wider, [(v.path, v.numpy()) for v in wider.weights][:-1], "teacher")
    for old, variable in zip(before, wider.weights, strict=True):
        np.testing.assert_array_equal(variable, old)


@pytest.mark.parametrize("trained_in", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("loaded_in", ["float32", "mixed_bfloat16"])
def test_a_loaded_model_computes_as_it_was_trained_whatever_the_process_trains_in(
    trained_in, loaded_in, toy_tokenizer, work_dir
):
    features = np.random.default_rng(0).standard_normal([1, 16, 80]).astype(np.float32)
    with dtype_policy(trained_in):
        model = tiny.transducer()
        save_model(model, toy_tokenizer, str(work_dir))
        expected = model.encode(features, np.array([16]))[0]
    with dtype_policy(loaded_in):
        encoded = load_model(str(work_dir))[0].encode(features, np.array([16]))[0]
    assert encoded.dtype == expected.dtype
    np.testing.assert_array_equal(encoded, expected)


@pytest.mark.parametrize(
    ("field", "value"), [("num_heads", 1), ("causal", True), ("left_context", 400), ("chunk", 2), ("dropout", 0.2)]
)
def test_an_architecture_that_was_edited_is_refused_although_the_weights_fit(folder, field, value):
    path = folder / "model.json"
    description = json.loads(path.read_text())
    description["architecture"]["encoder"][field] = value
    path.write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    with pytest.raises(UserError, match=r"model\.json is damaged: its sha256 does not fit its content; restore it, or"):
        load_model(str(folder))


def test_no_flipped_bit_of_the_description_passes(folder):
    path = folder / "model.json"
    content = path.read_bytes()
    for position in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.json (is damaged|has format)"):
            load_model(str(folder))


def other_weights(folder, change):
    """Weights altered by hand, and a description signed to fit."""
    with np.load(folder / "weights.npz") as archive:
        weights = [change(i, archive[name]) for i, name in enumerate(archive.files)]
    np.savez(folder / "weights.npz", *weights)
    change_description(folder, weights_hash=hash_weights(weights))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, w: w.view(np.int32) if i == 2 else w, "arr_2 is <i4, expected is float32"),
        (lambda i, w: w.astype(np.float64) if i == 2 else w, "arr_2 is <f8, expected is float32"),
        (lambda i, w: w * np.float32(np.nan) if i == 2 else w, "arr_2 holds values that are not finite"),
        (lambda i, w: w + np.float32(np.inf) if i == 2 else w, "arr_2 holds values that are not finite"),
        (lambda i, w: w.reshape(-1) if i == 2 else w, r"arr_2 has shape \(768,\), expected is \(3, 16, 16\)"),
    ],
)
def test_weights_of_another_type_or_shape_or_without_a_value_are_refused(folder, change, words):
    other_weights(folder, change)
    with pytest.raises(UserError, match=rf"weights\.npz is damaged: {words}; restore it"):
        load_model(str(folder))


def test_the_hash_knows_types_and_shapes():
    weight = np.ones([2, 3], np.float32)
    others = [weight.view(np.int32), weight.reshape(3, 2), weight.reshape(-1)]
    assert len({hash_weights([w]) for w in (weight, *others)}) == 4


def test_a_model_that_is_larger_than_its_weights_is_not_built(folder):
    description = json.loads((folder / "model.json").read_text())
    description["architecture"]["encoder"]["width"] = 2**20  # 8 TB of attention
    change_description(folder, architecture=description["architecture"])
    with pytest.raises(UserError, match=r"model\.json is damaged: its architecture has more weights than are there"):
        load_model(str(folder))


def test_a_model_of_an_older_version_is_refused_with_what_to_do(folder):
    change_description(folder, format=1)
    with pytest.raises(UserError, match=r"has format 1, this version reads 2: train it again, or use the version that"):
        load_model(str(folder))
