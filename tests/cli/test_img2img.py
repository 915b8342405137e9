"""A folder of images in, a folder of results out, with img2img.py and inpaint.py."""

import pytest
from PIL import Image

from sd.cli.img2img import images_in, masks_for
from sd.utils.errors import UserError

FLAGS = ("--steps", 1, "--seed", 3, "--ckpt", "emoji", "--width", 64, "--height", 64)


@pytest.fixture
def folder(tmp_path, photo):
    (tmp_path / "in").mkdir()
    for name in ("house.png", "tree.jpg"):
        photo.save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"half a download")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_each_image_gives_a_file_of_its_name_and_a_broken_one_is_said(run, folder, tmp_path):
    code, out, err = run("img2img.py", "a cat", "--init-img", folder, *FLAGS)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["house-00000.png", "tree-00000.png"]
    assert "note: skipped, as " in out
    assert "broken.png cannot be opened" in out


def test_one_mask_serves_all_and_a_folder_has_one_each(run, folder, tmp_path, photo):
    (folder / "broken.png").unlink()
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    code, _, err = run(
        "inpaint.py", "a cat", "--image", folder, "--mask", tmp_path / "mask.png", "--invert-mask", *FLAGS
    )
    assert code == 0, err
    with Image.open(tmp_path / "outputs" / "house-00000.png") as made:
        assert made.crop((0, 0, 24, 64)).tobytes() == photo.crop((0, 0, 24, 64)).tobytes()
    assert (tmp_path / "outputs" / "tree-00000.png").exists()


def test_masks_are_found_by_name(folder, tmp_path):
    paths = images_in(folder)[1:]
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (8, 8)).save(masks / "house.png")
    with pytest.raises(UserError, match=r"has no mask for tree\.jpg"):
        masks_for(paths, str(masks))
    Image.new("L", (8, 8)).save(masks / "tree.png")
    assert [path.name for path in masks_for(paths, str(masks))] == ["house.png", "tree.png"]
    with pytest.raises(UserError, match="holds no images"):
        images_in(tmp_path)
    with pytest.raises(UserError, match="is a folder: give one mask"):
        masks_for([], str(masks))
