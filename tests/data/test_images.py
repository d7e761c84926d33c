import numpy as np
import pytest
from PIL import Image

from minicenternet.data.images import read_image
from minicenternet.errors import InputError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_rgb_is_read_as_it_is(tmp_path):
    image = read_image(save(tmp_path / "a.png", Image.fromarray(RGB)))
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, RGB)


def test_greyscale_becomes_three_equal_channels(tmp_path):
    image = read_image(save(tmp_path / "a.png", Image.fromarray(RGB[:, :, 0])))
    np.testing.assert_array_equal(image, np.repeat(RGB[:, :, :1], 3, axis=2))


def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path):
    values = np.array([[0, 128, 257, 32768, 65000, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        image = read_image(save(tmp_path / name, Image.fromarray(values)))
        assert image[0, :, 0].tolist() == [round(int(value) * 255 / 65535) for value in values[0]]
        assert (image == image[:, :, :1]).all()


def test_sixteen_bits_in_a_32_bit_image_are_scaled_too(tmp_path):
    values = np.array([[0, 32768, 65535]], np.int32)
    image = read_image(save(tmp_path / "a.tif", Image.fromarray(values)))
    assert image[0, :, 1].tolist() == [0, 128, 255]


def test_bilevel_and_palette(tmp_path):
    bilevel = Image.fromarray(RGB[:, :, 0] > 127)
    image = read_image(save(tmp_path / "a.png", bilevel))
    np.testing.assert_array_equal(image[:, :, 2], 255 * (RGB[:, :, 0] > 127))
    palette = Image.fromarray((np.arange(54, dtype=np.uint8) % 2).reshape(6, 9)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    image = read_image(save(tmp_path / "b.png", palette))
    assert image[0, 0].tolist() == [10, 20, 30] and image[0, 1].tolist() == [40, 50, 60]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    colour = (200, 200, 200) if mode == "RGBA" else (200,)
    picture = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        picture.putpixel((x, 0), (*colour, alpha))
    image = read_image(save(tmp_path / "a.png", picture))
    expected = [255, round(200 * 128 / 255 + 255 * 127 / 255), 200]
    np.testing.assert_allclose(image[0, :, 0], expected, atol=1)


def test_transparent_palette_colour_is_white(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    image = read_image(save(tmp_path / "a.png", palette, transparency=0))
    assert image[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_cmyk(tmp_path):
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    for name in ("a.jpg", "a.tif"):
        image = read_image(save(tmp_path / name, picture))
        np.testing.assert_allclose(image, np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=6)


UPRIGHT = {  # what each EXIF orientation does to the pixels as stored
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def save_turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, Image.fromarray(RGB), exif=exif)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    path = save_turned(tmp_path / "a.png", orientation)
    np.testing.assert_array_equal(read_image(path), UPRIGHT[orientation](RGB))


def test_stored_pixels_are_given_where_the_annotation_was_made_on_them(tmp_path):
    path = save_turned(tmp_path / "a.png", 6)
    np.testing.assert_array_equal(read_image(path, size=(9, 6)), RGB)
    np.testing.assert_array_equal(read_image(path, size=(6, 9)), UPRIGHT[6](RGB))


def test_upright_pixels_are_given_where_size_does_not_tell(tmp_path):
    path = save_turned(tmp_path / "a.png", 3)
    np.testing.assert_array_equal(read_image(path, size=(9, 6)), UPRIGHT[3](RGB))


def test_another_size_than_annotated_is_refused_naming_both(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    with pytest.raises(InputError, match=r"a\.png is 9 x 6 pixels, but its annotation says 8 x 6"):
        read_image(path, size=(8, 6))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no image file at .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="no image file"):
        read_image(tmp_path)


@pytest.mark.parametrize("kept", [2, 100, 0.5, 0.95])
def test_truncated_jpeg(tmp_path, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(tmp_path / "whole.jpg", Image.fromarray(noise)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(InputError, match=r"cut\.jpg as an image: it is truncated, damaged or not an image"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n" + b"\0" * 60])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png .*not an image"):
        read_image(tmp_path / "a.png")


def test_decompression_bomb(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(InputError, match=r"a\.png.*decompression bomb.*smaller"):
        read_image(path)


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", Image.fromarray(np.ones((2, 2), np.float32)))
    with pytest.raises(InputError, match=r"a\.tif.*floating-point.*8 or 16 bits"):
        read_image(path)
