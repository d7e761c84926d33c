"""CenterNet as an object: what it refuses, how it is saved and loaded, its one-line uses."""

import json

import numpy as np
import pytest

from minicenternet import CenterNet
from minicenternet.autograd import Tensor
from minicenternet.errors import InputError
from minicenternet.nn.weights import load_weights, save_weights


def make(**options) -> CenterNet:
    return CenterNet("small", **{"class_names": ["cat", "dog"], "input_size": (32, 48), **options})


def test_saved_and_loaded_it_gives_the_same_maps(tmp_path):
    model = make(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6), channel_order="BGR", seed=5)
    model.save(tmp_path / "net.safetensors", {"ap": 0.5})
    loaded = CenterNet.load(tmp_path / "net.safetensors")
    for name in ("class_names", "input_size", "pixel_mean", "pixel_std", "channel_order", "backbone_name", "task_name"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert not loaded.training and not loaded.backbone.stem[1].training
    x = Tensor(np.random.default_rng(0).standard_normal((1, 32, 48, 3)).astype(np.float32))
    ours, theirs = model.eval()(x), loaded(x)
    assert all(np.array_equal(ours[name].data, theirs[name].data) for name in ours)
    assert json.loads(load_weights(tmp_path / "net.safetensors")[1]["metrics"]) == {"ap": 0.5}


def test_a_gpu_too_old_for_a_precision_is_named(another_gpu):
    model = make().to("cuda")
    another_gpu("75", 64 << 10)
    with pytest.raises(InputError, match="precision fp16 needs compute capability 8.0, and this GPU, .*, has 7.5; use"):
        model.set_precision("fp16")
    assert model.set_precision("float32").heads["hm"][0].precision == "float32"
    another_gpu("120", 99 << 10)
    assert model.set_precision("tf32").heads["hm"][0].precision == "tf32"


def test_the_seed_decides_the_weights():
    one, same, other = make(seed=1).state_dict(), make(seed=1).state_dict(), make(seed=2).state_dict()
    assert all(np.array_equal(one[key], same[key]) for key in one)
    assert not np.array_equal(one["stem.0.weight"], other["stem.0.weight"])


def test_no_two_layers_begin_alike():
    weights = [array.ravel()[:8] for key, array in make().state_dict().items() if array.ndim == 4]
    assert len({tuple(weight) for weight in weights}) == len(weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": []}, "at least one"),
        ({"class_names": ["cat", "cat"]}, "distinct"),
        ({"class_names": "cat"}, "a list of distinct names, at least one, got 'cat'"),
        ({"task": "detecton"}, "unknown task 'detecton'; there are detection"),
        ({"input_size": (30, 48)}, r"multiples of 16, got 30 x 48; the next is 32 x 48"),
        ({"input_size": (0, 48)}, "multiples of 16"),
        ({"pixel_mean": (0.5, 0.5)}, r"pixel_mean is \(0.5, 0.5\); expected three numbers, one for each channel"),
        ({"pixel_mean": (0.5, 0.5, float("nan"))}, "pixel_mean is"),
        ({"pixel_std": (0.5, 0.5, 0)}, r"pixel_std is \(0.5, 0.5, 0\); expected three numbers above 0"),
        ({"pixel_std": ("a", "b", "c")}, "pixel_std is"),
        ({"channel_order": "bgr"}, "channel_order is 'bgr'; it must be 'RGB' or 'BGR'"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_an_unknown_backbone_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown backbone 'resnet19'; there are small, resnet18"):
        CenterNet("resnet19", class_names=["a"])


def test_images_of_unfit_shape_are_refused():
    with pytest.raises(ValueError, match=r"needs images \(B, H, W, 3\), got \(1, 3, 32, 48\)"):
        make()(Tensor(np.zeros((1, 3, 32, 48), np.float32)))
    with pytest.raises(InputError, match="the next is 48 x 48"):
        make()(Tensor(np.zeros((1, 33, 48, 3), np.float32)))


def test_a_file_without_metadata_is_refused(tmp_path):
    save_weights(tmp_path / "bare.safetensors", make().state_dict())
    with pytest.raises(InputError, match="not what network they are"):
        CenterNet.load(tmp_path / "bare.safetensors")


def test_a_file_of_another_network_names_every_key(tmp_path):
    model = make()
    arrays = {key: array for key, array in model.state_dict().items() if key != "hm.2.bias"}
    arrays["hm.0.bias"] = np.zeros(7, np.float32)
    save_weights(tmp_path / "odd.safetensors", arrays, model.metadata())
    with pytest.raises(InputError) as error:
        CenterNet.load(tmp_path / "odd.safetensors")
    assert "missing: hm.2.bias [2]" in str(error.value)
    assert "misshapen: hm.0.bias is [7], expected [32]" in str(error.value)


@pytest.mark.parametrize("kept", [0, 10, 1000, 100_000])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "net.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="is damaged or no safetensors file"):
        CenterNet.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no weights at .*nowhere"):
        CenterNet.load(tmp_path / "nowhere.safetensors")


def test_predict_on_an_array():
    found = make().predict(np.zeros((40, 60, 3), np.uint8), min_score=0)
    assert found.boxes.shape == (96 * 2 if len(found) > 100 else len(found), 4)
    assert found.class_names == ("cat", "dog")


def test_summary_prints_and_returns_a_table(capsys):
    model = make()
    before = {key: array.copy() for key, array in model.state_dict().items()}
    table = model.summary(batch=4)
    text = capsys.readouterr().out
    assert "stage1.conv1" in text and "multiply-adds" in text
    assert table.parameters == sum(p.size for p in model.parameters())
    assert all(np.array_equal(array, before[key]) for key, array in model.state_dict().items())


# ---- weights of related networks -------------------------------------------------------------------------------------


def arrays_of(model: CenterNet, *parts: str) -> dict[str, np.ndarray]:
    """The arrays of these parts, or of all, each filled with a number of its own."""
    arrays = {key: array for key, array in model.state_dict().items() if not parts or key.split(".")[0] in parts}
    return {key: np.full_like(array, number) for number, (key, array) in enumerate(arrays.items())}


def assert_holds(model: CenterNet, arrays: dict[str, np.ndarray], but: tuple[str, ...] = ()) -> None:
    """These arrays are in the network; all others, and those of `but`, are as they were made."""
    fresh = CenterNet(model.backbone_name, class_names=model.class_names, input_size=model.input_size).state_dict()
    for key, array in model.state_dict().items():
        assert np.array_equal(array, arrays[key] if key in arrays and not key.startswith(but or "?") else fresh[key]), (
            key
        )


def test_an_imagenet_backbone_is_loaded_into_a_detector():
    """As torchvision names it: the trunk, a classifier that is ignored, and, in old files, no num_batches_tracked."""
    model = CenterNet("resnet18", class_names=["cat"])
    trunk = arrays_of(model, "conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    old = {key: array for key, array in trunk.items() if not key.endswith("num_batches_tracked")}
    report = model.load_matching({**old, "fc.weight": np.zeros((1000, 512)), "fc.bias": np.zeros(1000)})
    assert_holds(model, old)
    assert len(report.loaded) == len(old) == 100 and not report.misshapen
    assert str(report) == (
        "100 arrays were loaded; deconv_layers, hm, reg, wh begin anew, for the file has none; "
        "fc.weight, fc.bias of the file are not used"
    )


def test_an_imagenet_trunk_of_dla_has_no_prefix():
    model = CenterNet("dla34", class_names=["cat"], input_size=(64, 64))
    trunk = arrays_of(model, "base")
    report = model.load_matching({key.removeprefix("base."): array for key, array in trunk.items()})
    assert_holds(model, trunk)
    assert len(report.loaded) == len(trunk) and not report.unused and "dla_up, ida_up, hm" in str(report)


def test_other_classes_keep_all_but_the_last_layer():
    arrays, model = arrays_of(make(class_names=list("abc"))), make()
    report = model.load_matching(arrays)
    assert_holds(model, arrays, but=("hm.2",))
    assert not report.missing and not report.unused
    assert str(report) == (
        f"{len(arrays) - 2} arrays were loaded; hm.2.weight, hm.2.bias begin anew, for the file's are of other classes"
    )


@pytest.mark.parametrize(
    "backbone, last", [("small", ("hm.2",)), ("dla34", ("hm.2",)), ("hourglass104", ("hm.0.1", "hm.1.1"))]
)
def test_other_classes_as_many_keep_all_but_the_last_layer_too(backbone, last):
    size = (128, 128) if backbone == "hourglass104" else (64, 64)
    model = CenterNet(backbone, class_names=["cat", "dog"], input_size=size)
    report = model.load_matching(model.state_dict(), other_classes=True)
    assert report.misshapen == [f"{layer}.{name}" for layer in last for name in ("weight", "bias")]
    assert len(report.loaded) + len(report.misshapen) == len(model.state_dict())


@pytest.mark.parametrize(
    "theirs, message",
    [
        ("resnet34", r"the file has unknown layer1\.2\.conv1\.weight, .* and \d+ more"),
        ("resdcn18", r"has unknown deconv_layers\.0\.bias.*has of another shape deconv_layers"),
        ("small", r"has unknown stem\.0\.weight"),
    ],
)
def test_other_networks_are_refused_and_change_nothing(theirs, message):
    model = CenterNet("resnet18", class_names=["cat"])
    with pytest.raises(InputError, match=f"not those of resnet18: .*{message}.*Name the network that they are of"):
        model.load_matching(arrays_of(CenterNet(theirs, class_names=["cat"])))
    assert_holds(model, {})


def test_parts_in_pieces_are_refused():
    model = CenterNet("resnet34", class_names=["cat"])
    shorter = arrays_of(CenterNet("resnet18", class_names=["cat"]))
    with pytest.raises(InputError, match=r"the file lacks layer1\.2\.conv1\.weight, .* and \d+ more\. Name"):
        model.load_matching(shorter)
    with pytest.raises(InputError, match="no name is known"):
        model.load_matching({"fc.weight": np.zeros((1000, 512))})
    assert_holds(model, {})


def test_a_folded_network_takes_no_weights():
    model = make()
    with pytest.raises(InputError, match="a folded network cannot be given other weights"):
        model.eval().fold().load_matching(arrays_of(model))


def test_half_precision_becomes_the_networks_own():
    model = make()
    model.load_matching({key: array.astype(np.float16) for key, array in arrays_of(model, "stem").items()})
    assert model.backbone.stem[0].weight.dtype == np.float32
