"""A folder of images in, a folder of results out, with img2img.py and inpaint.py."""

import pytest
from PIL import Image

from sd.cli.img2img import images_in, masks_for, open_sources
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


def test_what_is_no_image_is_named(run, folder, tmp_path):
    (folder / "more").mkdir()
    code, out, err = run("img2img.py", "a cat", "--init-img", folder, *FLAGS)
    assert code == 0, err
    assert "also holds more/, notes.txt, which have no image's ending" in out
    assert out.splitlines()[-1] == "2 of 3 images done, 1 skipped"


def test_an_interrupted_folder_goes_on(run, folder, tmp_path):
    (folder / "broken.png").unlink()
    flags = ["a cat", "--init-img", folder, "--num-images", 2, "--skip-grid", *FLAGS]
    assert run("img2img.py", *flags)[0] == 0
    outputs = tmp_path / "outputs"
    before = {path.name: path.read_bytes() for path in outputs.iterdir()}
    assert len(before) == 4
    for name in ("tree-00000.png", "tree-00001.png"):
        (outputs / name).unlink()
    (outputs / "house-00001.png").write_bytes(b"half")
    code, out, err = run("img2img.py", *flags, "--resume")
    assert code == 0, err
    after = {path.name: path.read_bytes() for path in outputs.iterdir() if path.name != "house-00001.png"}
    assert after.pop("house-00002.png") == before.pop("house-00001.png")  # a broken file is never overwritten
    assert after == before
    code, out, _ = run("img2img.py", *flags, "--resume")
    assert out.splitlines()[-1] == "0 of 2 images done, 2 there already"


def test_a_mask_that_cannot_be_used_skips_its_image(run, folder, tmp_path, photo):
    (folder / "broken.png").unlink()
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (64, 64)).save(masks / "house.png")
    Image.new("L", (64, 64), 255).save(masks / "tree.png")
    code, out, err = run("inpaint.py", "a cat", "--image", folder, "--mask", masks, *FLAGS)
    assert code == 0, err
    assert "note: house is skipped, as the mask is empty" in out
    assert out.splitlines()[-1] == "1 of 2 images done, 1 skipped"
    (masks / "tree.png").write_bytes((masks / "house.png").read_bytes())
    code, _, err = run("inpaint.py", "a cat", "--image", folder, "--mask", masks, *FLAGS)
    assert (code, "the mask is empty" in err) == (2, True)


def test_names_that_would_collide_have_their_endings_or_a_number(folder, photo):
    """The ending stays the same when other images are added, as --resume needs it."""
    photo.save(folder / "House.jpg")
    titles = [source.title for source in open_sources(images_in(folder), [None] * 4)]
    assert titles == ["House.jpg", "house.png", "tree"]
    photo.save(folder / "house!.png")
    titles = [source.title for source in open_sources(images_in(folder), [None] * 5)]
    assert titles == ["House.jpg", "00002 house!.png", "00003 house.png", "tree"]


@pytest.mark.parametrize("outdir", ["in", "in/../in/"])
def test_the_folder_of_the_images_is_no_outdir(run, folder, tmp_path, outdir):
    """Its results would be taken for images when the command is repeated."""
    before = sorted(folder.iterdir())
    code, _, err = run("img2img.py", "a cat", "--init-img", folder, "--outdir", tmp_path / outdir, *FLAGS)
    assert (code, "choose another --outdir" in err) == (2, True)
    assert sorted(folder.iterdir()) == before


def test_the_size_is_said_of_each_image_that_is_generated(run, folder, photo, tmp_path):
    (folder / "broken.png").unlink()
    photo.resize((640, 320)).save(folder / "tree.jpg")
    flags = ["a cat", "--init-img", folder, "--strength", 0, "--steps", 1, "--seed", 3, "--ckpt", "emoji"]
    code, out, err = run("img2img.py", *flags)
    assert code == 0, err
    assert "tree: the image is 640x320: generating at " in out
    assert "house: the image is" not in out, "it is no larger than the model's own size"
    code, out, err = run("img2img.py", *flags, "--resume")
    assert code == 0, err
    assert "the image is" not in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--control", "none such", "--control-image", "in/house.png"], "no ControlNet named none such"),
        (["--control", "x", "--control-image", "in"], "in is a folder: give the path of one image"),
        (["--control-image", "in/house.png"], "without a ControlNet"),
        (["--region-mask", "in/house.png", "--region-mask", "in/house.png"], "1 region and there are 2"),
        (["--region-mask", "in/broken.png"], "cannot be opened as an image"),
    ],
)
@pytest.mark.parametrize("script", [["txt2img.py"], ["img2img.py", "--init-img", "in/house.png"]])
def test_what_cannot_be_used_is_said_before_the_checkpoint_is_loaded(run, folder, tmp_path, script, flags, said):
    (tmp_path / "damaged.ckpt").write_bytes(b"no checkpoint")
    code, _, err = run(script[0], "a cat", *script[1:], *flags, "--ckpt", "damaged.ckpt", "--steps", 1)
    assert (code, said in err) == (2, True), err


@pytest.mark.parametrize("flags", [["--resume"], ["--resume", "--seed", 1]])
def test_resume_is_for_a_folder_and_a_seed(run, photo, tmp_path, flags):
    photo.save(tmp_path / "one.png")
    code, _, err = run("img2img.py", "a cat", "--init-img", "one.png", *flags)
    assert (code, "--resume is for a folder" in err) == (2, True)


def test_a_folder_is_extended_without_masks(run, folder, tmp_path):
    code, _, err = run("inpaint.py", "a cat", "--image", folder, "--outpaint", 16, "--outpaint-sides", "left", *FLAGS)
    assert code == 0, err
    with Image.open(tmp_path / "outputs" / "house-00000.png") as made:
        assert made.size == (80, 64)
    code, _, err = run("inpaint.py", "a cat", "--image", folder, *FLAGS)
    assert (code, "missing --mask" in err) == (2, True)
