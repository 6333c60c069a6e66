"""Photographs come at the size asked for, upright and in RGB, and a pixel of the file is found in them."""

import numpy as np
import pytest
from PIL import Image

from mmmsv.analysis.photographs import find_photographs, read_photograph, read_photographs, with_queries


def write(path, width=90, height=60, mode="RGB", **options):
    """Half of it red, the lower half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (0, height // 2, width, height))
    image.convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("size", "fit", "shape", "scale", "offset"),
    [
        (192, "whole", (128, 192), (192 / 90, 128 / 60), (0, 0)),
        (96, "whole", (64, 96), (96 / 90, 64 / 60), (0, 0)),
        (64, "square", (64, 64), (64 / 60, 64 / 60), (15, 0)),
    ],
)
def test_sizes(tmp_path, size, fit, shape, scale, offset):
    photograph = read_photograph(write(tmp_path / "one.png"), size, fit)
    assert photograph.name == "one"
    assert photograph.shape == shape
    assert photograph.scale == pytest.approx(scale)
    assert photograph.offset == offset
    assert photograph.pixels[0, 0].tolist() == [255, 0, 0]
    assert photograph.pixels[-1, 0].tolist() == [0, 0, 255]


def test_a_long_photograph_keeps_one_token_of_the_last_stage(tmp_path):
    assert read_photograph(write(tmp_path / "one.png", 640, 8), 64, "whole").shape == (32, 64)


def test_pixels_of_the_file_are_found(tmp_path):
    whole = read_photograph(write(tmp_path / "one.png"), 192, "whole")
    assert whole.locate(None) == (64, 96)
    assert whole.locate((0, 0)) == (1, 1)
    assert whole.locate((89, 59)) == (126, 190)
    square = read_photograph(tmp_path / "one.png", 64, "square")
    assert square.locate((45, 30)) == (32, 32)
    with pytest.raises(
        ValueError, match=r"the query \(2, 30\) is outside the square that is cut out of the middle of one"
    ):
        square.locate((2, 30))


@pytest.mark.parametrize("query", [(90, 0), (0, 60), (-1, 0), (0, -1)], ids=str)
def test_a_query_outside_the_picture(tmp_path, query):
    photograph = read_photograph(write(tmp_path / "one.png"), 64, "whole")
    with pytest.raises(
        ValueError, match=r"is outside one, which is 90 x 60 pixels: give x in 0\.\.89 and y in 0\.\.59"
    ):
        photograph.locate(query)


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90 degrees to the left
    photograph = read_photograph(write(tmp_path / "one.jpg", exif=exif, quality=95), 96, "whole")
    assert photograph.shape == (96, 64)
    assert photograph.size == (60, 90)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_a_grey_photograph_gets_three_channels_and_a_sentence(tmp_path, mode, capsys):
    path = write(tmp_path / "grey.png", mode=mode)
    photograph = read_photograph(path, 64, "whole")
    assert (photograph.pixels == photograph.pixels[..., :1]).all()
    assert capsys.readouterr().err == f"{path} is grey ({mode}): its three channels are made equal\n"


@pytest.mark.parametrize(("dtype", "mode"), [("uint16", "I;16"), ("int32", "I"), ("float32", "F")])
def test_grey_pixels_of_more_than_8_bits_are_refused(tmp_path, dtype, mode):
    """They would be white where they are above 255."""
    path = tmp_path / "grey.tif"
    Image.fromarray(np.full((60, 90), 20000, dtype=dtype)).save(path)
    with pytest.raises(ValueError, match=rf"tif has more than 8 bits for each grey pixel \({mode}\); save it wit"):
        read_photograph(path, 64, "whole")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_are_refused(tmp_path, mode):
    path = tmp_path / "clear.png"
    image = Image.new("RGBA", (90, 60), "red")
    image.putpixel((3, 3), (0, 0, 0, 0))
    (image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "PA" else image.convert(mode)).save(path)
    with pytest.raises(
        ValueError, match=r"has transparent parts \(\w+\); put it onto a background, and save it as RGB"
    ):
        read_photograph(path, 64, "whole")


def test_an_alpha_channel_that_hides_nothing_is_left_out(tmp_path):
    assert read_photograph(write(tmp_path / "one.png", mode="RGBA"), 64, "whole").pixels[0, 0].tolist() == [255, 0, 0]


def test_a_folder_in_the_order_of_its_names(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.JPG", "a.png", "deep/c.webp"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    assert [path.name for path in find_photographs(tmp_path)] == ["a.png", "b.JPG", "c.webp"]
    assert [one.name for one in read_photographs(tmp_path, 32, "square")] == ["a", "b", "c"]


def test_bad_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no photograph .*none.jpg; give the path of a photograph, or of a fo"
    ):
        find_photographs(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"holds no photograph, that is no file with \.jpg, \.jpeg, \.png"):
        find_photographs(tmp_path)
    with pytest.raises(ValueError, match=r"there is no photograph .*none.jpg"):
        read_photograph(tmp_path / "none.jpg", 64, "whole")
    (tmp_path / "text.jpg").write_text("no photograph")
    with pytest.raises(
        ValueError, match=r"text.jpg cannot be read as a photograph \(.*\); give a JPEG, PNG or WebP file"
    ):
        read_photograph(tmp_path / "text.jpg", 64, "whole")
    path = write(tmp_path / "one.png")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"one\.png cannot be read as a photograph"):
        read_photograph(path, 64, "whole")


@pytest.mark.parametrize("size", [0, -32, 100])
def test_sizes_that_tokens_do_not_fill(tmp_path, size):
    with pytest.raises(ValueError, match=rf"the size is {size}, expected a multiple of 32, such as 512"):
        read_photograph(write(tmp_path / "one.png"), size, "whole")


def test_a_figure_for_each_photograph_has_its_query_and_its_name(tmp_path):
    (tmp_path / "other").mkdir()
    files = [write(tmp_path / "one.png"), write(tmp_path / "other" / "two.png", width=60, height=90)]
    photographs = [read_photograph(path, 96, "whole") for path in files]
    assert with_queries(photographs, (30, 50)) == [(photographs[0], (53, 32)), (photographs[1], (53, 32))]
    with pytest.raises(ValueError, match=r"the query \(70, 50\) is outside two, which is 60 x 90"):
        with_queries(photographs, (70, 50))
    same = read_photograph(write(tmp_path / "other" / "one.png"), 96, "whole")
    with pytest.raises(ValueError, match="several photographs are called one, and so would their figures be; rename"):
        with_queries([*photographs, same], None)
