"""Detections of part of a data set, as bytes: what ranks send each other, and what an evaluation keeps to go on from.

kept = KeptParts(folder, {"k": 100, ...}, world)     of one network, used in one way, on one data set
kept.add(part)                                       from then on a file of its own, whole or not at all
KeptParts(folder, the same, world).parts(names)      all of them, whoever wrote them, in however many ranks
delete_parts(folder)                                 when what they were kept for is done
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .distributed import World
from .errors import InputError
from .files import replacing
from .predict import Detections

OF = "of.json"  # the file that says of what the parts are
DAMAGED = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile)  # what reading a damaged one may raise


@dataclass
class Part:
    """Some images, by their index in the data set, their detections in that order, and the seconds of each stage."""

    images: list[int] = field(default_factory=list)
    detections: list[Detections] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)

    def pack(self) -> bytes:
        """Return the bytes of an .npz file."""
        file, empty = io.BytesIO(), [np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)]
        columns = zip(empty, *((one.boxes, one.scores, one.labels) for one in self.detections), strict=True)
        boxes, scores, labels = map(np.concatenate, columns)
        counts = np.array([len(one) for one in self.detections], np.int64)
        texts = {"names": [one.file_name for one in self.detections], "seconds": self.seconds}
        np.savez(
            file, images=np.array(self.images, np.int64), counts=counts, boxes=boxes, scores=scores, labels=labels,
            **{key: json.dumps(value) for key, value in texts.items()},
        )  # fmt: skip
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes, class_names: Sequence[str]) -> Part:
        """Return the part that `pack` gave the bytes of."""
        with np.load(io.BytesIO(data)) as file:
            ends = np.cumsum(file["counts"])
            columns = [np.split(file[name], ends[:-1]) for name in ("boxes", "scores", "labels")]
            names, seconds = (json.loads(str(file[key])) for key in ("names", "seconds"))
            images = file["images"].tolist()
        detections = [
            Detections(*of_one, tuple(class_names), file_name=name)
            for *of_one, name in zip(*columns, names, strict=False)  # no names: np.split makes one part even of nothing
        ]
        return cls(images, detections, Counter(seconds))


class KeptParts:
    """A folder of parts, which all ranks can read and write.

    of: what all of them are of, ready for json.dump.  Raises InputError when the folder holds parts of anything else.
    """

    def __init__(self, folder: str | os.PathLike, of: Mapping[str, object], world: World):
        self.folder, self.world = Path(folder), world
        if world.rank == 0:
            self._check(of)

    def _check(self, of: Mapping[str, object]) -> None:
        file, text = self.folder / OF, json.dumps(of, indent=2, sort_keys=True) + "\n"
        if not file.exists():
            with replacing(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        elif (there := file.read_text(encoding="utf-8")) != text:
            raise InputError(
                f"{self.folder} keeps detections of another evaluation, not finished: {_differing(there, of)} "
                "differ. Finish that one as it was begun, delete the folder, or name another"
            )

    def add(self, part: Part) -> None:
        """Write one part, which has at least one image."""
        with replacing(self.folder / f"{part.images[0]:08}.npz") as temporary:
            temporary.write_bytes(part.pack())

    def parts(self, class_names: Sequence[str]) -> list[Part]:
        """Return all parts that were added, by whichever rank, now or earlier; on other ranks than 0 none.

        Raises InputError when one is damaged.
        """
        found = []
        if self.world.rank > 0:
            return found
        for path in sorted(self.folder.glob("*.npz")):
            try:
                found.append(Part.unpack(path.read_bytes(), class_names))
            except DAMAGED as error:
                raise InputError(
                    f"{path} is damaged ({error}); delete it, and its images are looked at again"
                ) from error
        return found


def delete_parts(folder: Path) -> None:
    """Delete what `KeptParts` wrote to a folder, and the folder, if nothing else is in it."""
    for path in [*folder.glob("*.npz"), *folder.glob(".*.tmp"), folder / OF]:
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _differing(there: str, of: Mapping[str, object]) -> str:
    try:
        other = json.loads(there)
        return ", ".join(key for key in of if other.get(key) != json.loads(json.dumps(of[key])))
    except (ValueError, AttributeError):
        return f"{OF} is damaged, so it cannot be said what"
