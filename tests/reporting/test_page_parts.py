"""Pictures of masks and of a codebook, against what they are by definition."""

import numpy as np
import pytest
from PIL import Image

from dalle.reporting.page.codebook import codebook_picture
from dalle.reporting.page.masks import mask_colours, masks_section, shrunken

GREY, BLUE = (134, 148, 170), (37, 99, 201)


def _sees(kind, query, key, text, grid, kernel):
    """Appendix B.1, one pair at a time, in rows and columns of the image where they are meant."""
    if key > query:
        return False
    if query < text or key < text:
        return True
    q, k = query - text, key - text
    if kind == "row":
        return q - k <= grid
    if kind == "column":
        return q % grid == k % grid
    reach = kernel // 2
    return any(k == q - grid * dr - dc for dr in range(reach + 1) for dc in range(-reach, reach + 1))


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_a_mask_is_drawn_as_it_is(kind):
    text, grid = 4, 5
    colours = mask_colours(kind, text, grid, 3)
    assert colours.shape == (29, 29, 4)
    for query in range(29):
        for key in range(29):
            *colour, opacity = colours[query, key]
            assert (opacity == 255) == _sees(kind, query, key, text, grid, 3), (query, key)
            assert opacity == 0 or tuple(colour) == (GREY if key < text else BLUE)


def _config(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return folder


def test_every_layer_of_a_prior_is_shown(tmp_path):
    folder = _config(
        tmp_path / "it", "model: {text_slots: 6, grid: 4, depth: 6, heads: 1, width: 64, conv_kernel: 3}\n"
    )
    page = masks_section(folder)
    # layer i is a column layer where (i − 2) mod 4 = 0, the last is convolutional
    for number, kind in enumerate(["row", "column", "row", "row", "row", "conv"], 1):
        assert f">{number} {kind}</a>" in page
    assert "layers 1, 3, 4, 5 (4 of 6)" in page and "layer 2 (1 of 6)" in page and "convolutional, 3×3" in page
    files = sorted(path.name for path in (folder / "pictures").iterdir())
    kinds = ("column-6-4", "conv-6-4-3", "row-6-4")
    assert files == sorted(f"mask-{kind}{end}.png" for kind in kinds for end in ("", "-shown", "-small"))
    assert (
        page.count('src="pictures/mask-row-6-4-small.png"') == 4
        and page.count('src="pictures/mask-row-6-4-shown.png"') == 1
    )
    with Image.open(folder / "pictures" / "mask-row-6-4.png") as picture:
        # 22 slots, each of 22 × 22 pixels, since 21 would make less than 480
        assert picture.size == (484, 484) and picture.getpixel((0, 0))[3] == 255 and picture.getpixel((22, 21))[3] == 0
    # 16 · 17 / 2 of the image's triangle; a row layer leaves out what is further back than 4
    kept = sum(_sees("row", q, k, 6, 4, 3) for q in range(22) for k in range(22)) / (22 * 23 / 2)
    assert f"{kept:.1%} of the causal triangle" in page
    before = {name: (folder / "pictures" / name).stat().st_mtime_ns for name in files}
    masks_section(folder)
    assert before == {name: (folder / "pictures" / name).stat().st_mtime_ns for name in files}


def test_a_shrunken_mask_keeps_its_lines(tmp_path):
    """Of a column layer a line is one slot of 16, which a browser that shrinks the picture to a quarter would lose, or break."""
    whole = mask_colours("column", 8, 16, 3)
    small = shrunken(whole, 66)
    assert len(whole) == 264 and len(small) == 66
    for row in range(66):
        for column in range(66):
            square = whole[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(-1, 4)
            seen = {tuple(each) for each in square if each[3]}
            blue, grey = (*BLUE, 255), (*GREY, 255)
            expected = blue if blue in seen else grey if grey in seen else (0, 0, 0, 0)
            assert tuple(small[row, column]) == expected
    assert len(shrunken(whole, 50)) == 44 and shrunken(whole, 264) is whole  # 264 in squares of 6, the last ones whole
    # 263 in squares of 4: what is beyond the edge is not seen
    odd = shrunken(whole[1:, 1:], 66)
    assert len(odd) == 66 and tuple(odd[65, 65]) == (*BLUE, 255)
    masks_section(_config(tmp_path / "it", "model: {text_slots: 256, grid: 32, depth: 4, heads: 1, width: 64}\n"))
    sizes = {}
    for end in ("", "-shown", "-small"):
        with Image.open(tmp_path / f"it/pictures/mask-column-256-32{end}.png") as picture:
            sizes[end] = picture.size
    assert sizes == {"": (1280, 1280), "-shown": (320, 320), "-small": (80, 80)}


def test_many_layers_are_told_briefly_and_a_dense_one_is_one_kind(tmp_path):
    page = masks_section(_config(tmp_path / "a", "model: {text_slots: 6, grid: 4, depth: 64, heads: 1, width: 64}\n"))
    assert "layers 1, 3, 4, 5, …, 63 (47 of 64)" in page and ">64 conv</a>" in page
    page = masks_section(
        _config(tmp_path / "b", "model: {text_slots: 6, grid: 4, depth: 1, heads: 1, width: 64, attention: dense}\n")
    )
    assert page.count("<figure>") == 1 and "100.0% of the causal triangle" in page and "layer 1<" in page


@pytest.mark.parametrize(
    "text",
    [
        "model: {image_size_px: 32, codebook_size: 16}\n",
        "model: {heads: 1, depth: two}\n",
        "model: {heads: 1, depth: 3, unknown: 4}\n",
        "model: {heads: 3, depth: 3, width: 64}\n",
        "model: 5\n",
        "- a list\n",
        "model: {text_slots: 6, grid: 70, depth: 2, heads: 1, width: 64}\n",
        "\x00",
    ],
)
def test_what_is_no_prior_or_damaged_has_no_masks(tmp_path, text):
    assert masks_section(_config(tmp_path / "it", text)) == ""
    assert not (tmp_path / "it/pictures").exists()


def test_a_run_without_a_configuration_has_none(tmp_path):
    assert masks_section(tmp_path) == ""


def _cells(use, columns):
    picture = np.asarray(codebook_picture(np.array(use)))
    side = 512 // columns
    assert picture.shape[1] == side * columns
    return picture[side // 2 :: side, side // 2 :: side]


def test_the_use_of_a_codebook():
    """Nine codes in rows of ⌈√18⌉ = 5: never, seldom, often, and half way between by the logarithm."""
    cells = _cells([0, 1, 100, 10, 0, 0, 1, 0, 0], 5)
    assert cells.shape == (2, 5, 4)
    never, seldom, often = (24, 26, 33, 255), (64, 66, 150, 255), (255, 196, 92, 255)
    assert tuple(cells[0, 0]) == tuple(cells[0, 4]) == tuple(cells[1, 3]) == never
    assert tuple(cells[0, 1]) == tuple(cells[1, 1]) == seldom and tuple(cells[0, 2]) == often
    np.testing.assert_allclose(cells[0, 3], (np.array(seldom) + np.array(often)) / 2, atol=1)  # rounded to 8 bits
    assert cells[1, 4, 3] == 0  # there is no tenth code


@pytest.mark.parametrize("use", [[0] * 8, [3] * 8, [0, 0, 5, 0, 0, 0, 0, 0]])
def test_codebooks_of_one_kind(use):
    colours = {tuple(cell) for cell in _cells(use, 4).reshape(-1, 4)}
    expected = {(24, 26, 33, 255)} if 0 in use else set()
    assert colours == expected | ({(255, 196, 92, 255)} if any(use) else set())


def test_a_large_codebook_has_a_cell_for_each():
    picture = codebook_picture(np.ones(8192))
    assert picture.size == (512, 256)  # 128 · 64 cells of 4 pixels
