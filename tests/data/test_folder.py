import os

import numpy as np
import pytest
from PIL import Image

from normbench import machine
from normbench.config.catalog.datasets import DataError, TooLarge
from normbench.data.folder import IMAGE_FOLDER


def decode(directory, say=lambda _: None, image_size=32):
    return IMAGE_FOLDER.decode(directory, say, folder="images", image_size=image_size)


def fingerprint(directory):
    return IMAGE_FOLDER.fingerprint(directory, folder="images", image_size=32)


def test_pixels_and_labels_are_those_of_the_files(tmp_path, image_tree):
    arrays = decode(image_tree(tmp_path))
    assert arrays.classes == ("ant", "bee", "cow")
    assert arrays.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert arrays.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(
        arrays.train_images[5], np.asarray(Image.open(tmp_path / "images/train/bee/1.png"))
    )
    np.testing.assert_array_equal(
        arrays.test_images[4], np.asarray(Image.open(tmp_path / "images/test/cow/0.png"))
    )


def test_more_images_than_one_thread_takes_at_once_stay_in_order(tmp_path, image_tree):
    arrays = decode(image_tree(tmp_path, classes=("ant", "bee"), train=300, test=1, side=4), image_size=4)
    for index in (0, 249, 250, 299):
        np.testing.assert_array_equal(
            arrays.train_images[300 + index],
            np.asarray(Image.open(tmp_path / f"images/train/bee/{index}.png")),
        )


def test_files_and_classes_come_in_natural_order(tmp_path, image_tree):
    image_tree(tmp_path, classes=("10", "9", "cat"), train=11, test=1)
    arrays = decode(tmp_path)
    assert arrays.classes == ("9", "10", "cat")
    np.testing.assert_array_equal(
        arrays.train_images[10], np.asarray(Image.open(tmp_path / "images/train/9/10.png"))
    )


def test_an_image_of_another_size_is_scaled_by_its_short_side_and_cropped_in_the_middle(tmp_path, image_tree):
    image_tree(tmp_path)
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, :32], wide[:, 32:96], wide[:, 96:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "images/train/ant/0.png")
    image = decode(tmp_path).train_images[0]
    assert image.shape == (32, 32, 3)
    assert (image[:, 1:-1] == (0, 255, 0)).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_eight_bit_mode_becomes_rgb(tmp_path, image_tree, mode):
    image_tree(tmp_path)
    suffix = ".tiff" if mode == "CMYK" else ".png"
    source = Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode)
    source.save(tmp_path / f"images/train/ant/9{suffix}")
    assert (decode(tmp_path).train_images[4] == 255).all()


def test_what_is_no_image_is_passed_over_and_said(tmp_path, image_tree):
    image_tree(tmp_path)
    (tmp_path / "images/train/ant/notes.txt").write_text("an ant")
    (tmp_path / "images/train/list.csv").write_text("ant")
    (tmp_path / "images/train/ant/.DS_Store").write_text("")
    said = []
    assert len(decode(tmp_path, said.append).train_images) == 12
    assert any("skipped 2 files" in line and "list.csv" in line for line in said)


def test_progress_is_said(tmp_path, image_tree):
    said = []
    decode(image_tree(tmp_path), said.append)
    assert said == [f"{tmp_path / 'images'}: 18 of 18 images decoded"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


def replace_by_text(path):
    path.write_text("not an image")


def empty(path):
    path.write_bytes(b"")


def make_sixteen_bit(path):
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(path)


@pytest.mark.parametrize("damage", [truncate, replace_by_text, empty, make_sixteen_bit])
def test_an_unreadable_image_is_named(tmp_path, image_tree, damage):
    image_tree(tmp_path)
    path = tmp_path / "images/test/bee/1.png"
    damage(path)
    with pytest.raises(DataError, match="not readable as an image") as caught:
        decode(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tree_split_class_or_image_is_named(tmp_path, image_tree):
    with pytest.raises(DataError, match="images/train: missing"):
        fingerprint(tmp_path)
    with pytest.raises(DataError, match="images/train: missing"):
        decode(tmp_path)
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/test").mkdir()
    with pytest.raises(DataError, match="contains no classes"):
        decode(tmp_path)
    image_tree(tmp_path / "other")
    (tmp_path / "other/images/test/dog").mkdir()
    with pytest.raises(DataError, match="images/train/dog: missing; test has this class"):
        decode(tmp_path / "other")
    (tmp_path / "other/images/train/dog").mkdir()
    with pytest.raises(DataError, match="images/train/dog: contains no images"):
        decode(tmp_path / "other")


@pytest.mark.parametrize("link", ["train/ant/9.png", "train/dog", "train/ant/deeper"])
def test_a_link_inside_the_tree_is_refused(tmp_path, image_tree, link):
    image_tree(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (32, 32)).save(outside / "secret.png")
    (tmp_path / "images" / link).symlink_to(outside / "secret.png" if link.endswith(".png") else outside)
    for look in fingerprint, decode:
        with pytest.raises(DataError, match=f"{link}: a symbolic link"):
            look(tmp_path)


def test_a_split_that_is_a_link_is_refused(tmp_path, image_tree):
    image_tree(tmp_path)
    (tmp_path / "images/test").rename(tmp_path / "elsewhere")
    (tmp_path / "images/test").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="images/test: a symbolic link"):
        fingerprint(tmp_path)


def test_the_tree_itself_may_be_a_link(tmp_path, image_tree):
    image_tree(tmp_path / "far")
    (tmp_path / "images").symlink_to(tmp_path / "far/images")
    assert len(decode(tmp_path).train_images) == 12


def test_the_fingerprint_moves_with_names_sizes_and_times_only(tmp_path, image_tree):
    image_tree(tmp_path)
    path, seen = tmp_path / "images/train/ant/0.png", {fingerprint(tmp_path)}
    assert fingerprint(tmp_path) in seen

    def moved():
        before = len(seen)
        seen.add(fingerprint(tmp_path))
        return len(seen) > before

    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert moved()
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert moved()
    path.rename(path.with_name("00.png"))
    assert moved()
    path.with_name("00.png").unlink()
    assert moved()


def test_real_images_decode(real_images):
    arrays = decode(real_images)
    assert arrays.train_images.shape == (320, 32, 32, 3)
    assert arrays.test_images.shape == (160, 32, 32, 3)
    assert "airplane" in arrays.classes
    assert 100 < arrays.train_images.mean() < 140  # CIFAR-10's mean is 121
    assert arrays.train_images.std(axis=0).min() > 20


def rename(tree, split, old, new):
    """Names are bytes."""
    place = tree / os.fsdecode(split)
    (place / os.fsdecode(old)).rename(place / os.fsdecode(new))


def test_a_class_whose_name_is_not_utf_8_is_named_before_an_image_is_read(tmp_path, image_tree):
    image_tree(tmp_path)
    for split in b"train", b"test":
        rename(tmp_path / "images", split, b"bee", b"caf\xe9")
    (tmp_path / "images/train/ant/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"images/train/caf\\xe9: the name of this class is not UTF-8"):
        decode(tmp_path)


def test_files_whose_names_are_not_utf_8_are_read(tmp_path, image_tree):
    image_tree(tmp_path)
    rename(tmp_path / "images", b"train/ant", b"0.png", b"\xe9.png")
    assert len(decode(tmp_path).train_images) == 12


def test_class_names_in_two_unicode_normalizations_are_told_apart_aloud(tmp_path, image_tree):
    image_tree(tmp_path)
    composed, decomposed = "caf\u00e9".encode(), "cafe\u0301".encode()
    rename(tmp_path / "images", b"train", b"bee", composed)
    rename(tmp_path / "images", b"test", b"bee", decomposed)
    with pytest.raises(DataError, match="differs only in Unicode normalization") as caught:
        decode(tmp_path)
    assert r"caf\xe9" in str(caught.value)
    assert r"cafe\u0301" in str(caught.value)
    (tmp_path / "images/train" / os.fsdecode(decomposed)).mkdir()
    with pytest.raises(DataError, match=r"differs only in Unicode normalization.* of another class"):
        decode(tmp_path)


def test_class_names_that_differ_only_in_letter_case_are_told_apart_aloud(tmp_path, image_tree):
    image_tree(tmp_path)
    (tmp_path / "images/test/bee").rename(tmp_path / "images/test/Bee")
    with pytest.raises(DataError, match="differs only in letter case from that"):
        decode(tmp_path)


def test_two_classes_that_differ_only_in_letter_case_are_taken_and_told(tmp_path, image_tree):
    image_tree(tmp_path, classes=("bee", "Bee"))
    said = []
    assert decode(tmp_path, said.append).classes == ("Bee", "bee")
    assert any("differ only in letter case" in line for line in said)


def test_a_folder_that_is_not_there_may_have_been_meant_as_one_that_is(tmp_path, image_tree):
    image_tree(tmp_path, folder="Images")
    with pytest.raises(DataError, match=r"images/train: missing \(did you mean 'Images'\?\)"):
        fingerprint(tmp_path)
    (tmp_path / "Images").rename(tmp_path / "birds")
    with pytest.raises(DataError, match=r"images/train: missing \(available: birds\)"):
        fingerprint(tmp_path)
    (tmp_path / "birds").rename(tmp_path / "images")
    (tmp_path / "images/test").rename(tmp_path / "images/Test")
    with pytest.raises(DataError, match=r"images/test: missing \(there is 'Test'"):
        fingerprint(tmp_path)


def test_images_that_memory_does_not_hold_are_refused_by_arithmetic(tmp_path, image_tree, monkeypatch):
    image_tree(tmp_path)
    monkeypatch.setattr(machine, "available_memory", lambda: 10**6)
    with pytest.raises(TooLarge, match=r"18 images at image_size 1000 take 0\.1 GB of memory, and 0\.0 GB"):
        decode(tmp_path, image_size=1000)
