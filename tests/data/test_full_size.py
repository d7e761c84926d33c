"""Data of COCO's kind and, where that is quick, of its size: what it takes of memory.  No time is asserted."""

import os
import sys
import tracemalloc

import numpy as np
import pytest
from made_up_coco import CATEGORIES, FULL, detect, write_coco
from tiny_data import WithoutPixels, box_count, pss

from minicenternet.data import Coco
from minicenternet.data.annotation import ImageFiles
from minicenternet.data.loader import Loader
from minicenternet.metrics import average_precision

MB = 1 << 20


def test_a_five_hundredth_of_coco(tmp_path):
    images, boxes = (count // 500 for count in FULL["train"])
    path = write_coco(tmp_path, "train", images, boxes)
    assert path.stat().st_size > 448e6 / 500  # COCO's own takes 448 MB
    tracemalloc.start()
    dataset = Coco(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * path.stat().st_size
    assert (len(dataset), len(dataset.boxes), len(dataset.class_names)) == (images, boxes, 80)
    assert dataset[images - 1].image.shape[2] == 3
    found = list(detect(dataset, each=20))
    truth = [dataset.annotation(i) for i in range(images)]
    result = average_precision(truth, found, len(CATEGORIES))
    assert 0.2 < result.ap < result.ap50 < 1  # neither all right nor all wrong


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_memory_of_workers_with_all_of_cocos_records_stays_as_it_is():
    images, boxes = FULL["train"]
    rng = np.random.default_rng(0)
    dataset = ImageFiles(
        folder=None,
        class_names=[f"thing {c}" for c in range(80)],
        category_ids=range(80),
        image_ids=list(range(1000, 1000 + images)),
        file_names=[f"{i:012d}.jpg" for i in range(images)],
        sizes=np.full((images, 2), 640),
        box_image=rng.integers(0, images, boxes),
        box_ids=np.arange(boxes),
        boxes=rng.random((boxes, 4)),
        labels=rng.integers(0, 80, boxes),
        crowd=np.zeros(boxes),
        difficult=np.zeros(boxes),
        area=rng.random(boxes),
        dropped=0,
    )
    alone, held = pss(os.getpid()), []  # of all processes together, after each epoch
    with Loader(WithoutPixels(dataset), box_count, 64, workers=2, shuffle=True) as loader:
        for epoch in range(10):
            for _ in zip(range(4), loader.epoch(epoch), strict=False):  # some of its batches suffice
                pass
            held.append(pss(os.getpid()) + sum(pss(process.pid) for process in loader._pool.processes))
    assert max(held) - alone < 200 * MB
    assert held[-1] - held[3] < 4 * MB  # by the fourth, each process keeps as many orders of epochs as it will
