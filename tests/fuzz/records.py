"""Record sets: opened, read, and made batches of."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import tensorflow as tf

from tests.data import batches
from tests.fuzz.core import Case, Door, Inconsistent, Outcome, digest, one_of
from tests.fuzz.damage import damage_bytes, damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, damage_npz, sign
from tf_rnnt_kd import files
from tf_rnnt_kd.data import shards
from tf_rnnt_kd.data.manifest import MANIFEST
from tf_rnnt_kd.data.pipeline import named_shards
from tf_rnnt_kd.data.records import open_records

_CODECS = (None, "factored", "lattice")
_BATCHES_EACH = 12  # a graph for batches takes a third of a second, so few cases have one


class Given(NamedTuple):
    """A folder, how to damage it further when it is open, and whether batches are read."""

    folder: pathlib.Path
    later: tuple[str, bytes] | None = None
    batches: bool = False


class Records(Door):
    """Of each codec one set."""

    name, cases = "records", 500

    def build(self):
        for codec in _CODECS:
            batches.write_set(self.folder / str(codec), count=5, codec=codec)

    def open(self):
        return {str(codec): self._see(Given(self.folder / str(codec), batches=True)) for codec in _CODECS}

    def case(self, rng, number):
        codec = str(_CODECS[rng.integers(3)])
        folder = self.copied(codec)
        kind = (self._bytes, self._files, self._manifest, self._manifest, self._index, self._later)[number % 6]
        what, given, forged = kind(rng, folder)
        given = given._replace(batches=given.batches or number // 6 % _BATCHES_EACH == 0)
        return Case(f"{codec}: {what}", (codec, given), forged)

    def enter(self, given):
        return Outcome(given[0], self._see(given[1]))

    def fits(self, outcome, reference):
        whole = reference[outcome.name]
        return all(found in (whole[name], None) for name, found in outcome.found.items())

    def _bytes(self, rng, folder):
        path = one_of(rng, files_in(folder))
        return damage_file(rng, path), Given(folder), False

    def _files(self, rng, folder):
        files = files_in(folder)
        path = one_of(rng, files)
        alike = [other for other in files if other != path and other.suffix == path.suffix]
        return misplace(rng, path, alike if rng.integers(2) else files), Given(folder), False

    def _manifest(self, rng, folder):
        path = folder / MANIFEST
        if not rng.integers(8):
            what, data = damage_json_text(rng, path.read_bytes())
        else:
            what, data = damage_json(rng, json.loads(path.read_bytes()), sign)
        path.write_bytes(data)
        return f"manifest signed again: {what}", Given(folder), True

    def _index(self, rng, folder):
        """An index, or the joint, whose hash in the manifest is made to fit."""
        path = one_of(rng, [path for path in files_in(folder) if path.suffix == ".npz"])
        what, data = damage_npz(rng, path.read_bytes())
        path.write_bytes(data)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if path.name == "joint.npz":
            manifest["joint_sha256"] = files.sha256_of(data)
        for entry in manifest["shards"]:
            if shards.index_path(str(folder / entry["name"])) == str(path):
                entry["index_sha256"] = files.sha256_of(data)
        (folder / MANIFEST).write_bytes(sign(manifest))
        return f"{path.name} signed again: {what}", Given(folder, batches=not rng.integers(6)), True

    def _later(self, rng, folder):
        path = one_of(rng, [path for path in files_in(folder) if path.suffix == ".tfrecord"])
        what, data = damage_bytes(rng, path.read_bytes())
        batched = not rng.integers(4)
        return f"{path.name} while open: {what}", Given(folder, (str(path), data), batched), False

    def _see(self, given):
        records = open_records(str(given.folder))
        if given.later:
            pathlib.Path(given.later[0]).write_bytes(given.later[1])
        ids, found = records.ids, [_digest(record) for record in records.read()]
        if len(found) != records.num_utterances or len(ids) != len(found) or len(records.index.offset) != len(found):
            raise Inconsistent(f"{len(found)} records, {len(ids)} ids, {len(records.index.offset)} in the index")
        joint = digest(records.kernel, records.bias) if records.targets and records.targets.width else ""
        read = _read_batches(records) if given.batches else None
        return {"ids": ids, "records": found, "joint": joint, "batches": read}


def _read_batches(records):
    schedule = batches.plan([records], num_steps=2, fraction=1.0, buckets=batches.SMALL)
    with named_shards([records]):
        read = batches.read([records], schedule, with_teacher=records.targets is not None)
    if len(read) != len(schedule.rows):
        raise Inconsistent(f"{len(read)} batches of {len(schedule.rows)}")
    for k, batch in zip(schedule.bucket, read, strict=True):
        if len(batch.features) != batches.SMALL.batch_size(int(k)):
            raise Inconsistent(f"a batch of {len(batch.features)} rows, not {batches.SMALL.batch_size(int(k))}")
    return digest(*tf.nest.flatten(read))


def _digest(record):
    fields = [value for value in dataclasses.asdict(record).values() if value is not None]
    return digest(*fields)
