import numpy as np
import pytest
from PIL import Image

from minicenternet.data.images import read_image, read_reduced
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


# ---- JPEGs that are decoded smaller


def smooth(width, height):
    """Slow waves along both axes, so that no block of a JPEG is flat."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(2 * np.pi * (x / a + y / b)) for a, b in ((90, 150), (-70, 110), (200, 64))]
    return (127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize(
    "zoom, times", [(2, 1), (0.51, 1), (0.5, 2), (0.26, 2), (0.25, 4), (0.13, 4), (0.125, 8), (0.01, 8)]
)
def test_a_jpeg_is_reduced_as_often_as_will_not_be_seen(tmp_path, zoom, times):
    width, height = 131, 70  # neither is a multiple
    path = save(tmp_path / "a.jpg", Image.fromarray(smooth(width, height)), quality=95)
    image, by = read_reduced(path, (width, height), zoom)
    assert by == times and image.shape == (-(-height // times), -(-width // times), 3) and image.dtype == np.uint8
    whole = read_image(path).astype(float)
    rows, columns = height // times, width // times  # those that lie inside
    means = whole[: rows * times, : columns * times].reshape(rows, times, columns, times, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(image[:rows, :columns], means, atol=8)
    np.testing.assert_allclose(image[:rows, :columns].mean(axis=(0, 1)), means.mean(axis=(0, 1)), atol=0.5)


@pytest.mark.parametrize("width, height", [(1, 1), (5, 3), (3, 40), (9, 7)])
def test_images_smaller_than_a_block(tmp_path, width, height):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (width, height), (200, 100, 50)), quality=100)
    image, times = read_reduced(path, (width, height), 0.01)
    assert image.shape == (-(-height // times), -(-width // times), 3)
    np.testing.assert_allclose(image, np.broadcast_to([200, 100, 50], image.shape), atol=4)


def test_what_cannot_be_reduced_comes_whole(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = smooth(64, 48)
    for path in (
        save(tmp_path / "a.png", Image.fromarray(pixels)),
        save(tmp_path / "turned.jpg", Image.fromarray(pixels), exif=exif, quality=95),
    ):
        image, times = read_reduced(path, (64, 48), 0.1)
        assert times == 1
        np.testing.assert_array_equal(image, read_image(path))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_reduced_too(tmp_path, mode):
    path = save(tmp_path / "a.jpg", Image.fromarray(smooth(64, 48)).convert(mode), quality=95)
    image, times = read_reduced(path, (64, 48), 0.25)
    assert times == 4 and image.shape == (12, 16, 3)
    np.testing.assert_allclose(image.mean(axis=(0, 1)), read_image(path).mean(axis=(0, 1)), atol=1)


def test_a_reduced_image_of_another_size_or_cut_short_is_refused(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(smooth(64, 48)), quality=95)
    with pytest.raises(InputError, match=r"a\.jpg is 64 x 48 pixels, but its annotation says 65 x 48"):
        read_reduced(path, (65, 48), 0.1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="truncated"):
        read_reduced(path, (64, 48), 0.1)
