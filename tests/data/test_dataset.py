import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normbench.config.catalog.datasets import DataError
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.cache import Cache


def choice(**options):
    return Trial.model_validate({"dataset": {"name": "folder", **options}}).dataset


FOLDER = choice()


def cache_of(directory):
    return directory / "decoded" / "folder" / "images" / "32"


def touch(path):
    """Move the modification time by one tick, as any later write would."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    touch(path)


def python(code, *arguments, **options):
    """A process of its own that runs ``code`` with ``dataset``, ``directory`` and the functions at hand."""
    start = """
        import json, os, signal, sys
        from pathlib import Path
        from normbench.data import dataset as decoded
        from normbench.data.dataset import DataError, load, prepare
        from normbench.config.trial import Trial
        dataset = Trial.model_validate({"dataset": "folder"}).dataset
        directory = Path(sys.argv[1])
    """
    script = textwrap.dedent(start) + textwrap.dedent(code)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        **options,
    )


def output_of(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_a_loaded_set_is_what_was_decoded(tmp_path, image_tree):
    image_tree(tmp_path)
    decoded.prepare(FOLDER, tmp_path)
    loaded = decoded.load(FOLDER, tmp_path)
    assert loaded.classes == ("ant", "bee", "cow")
    assert loaded.train.images.shape == (12, 32, 32, 3)
    assert loaded.train.images.dtype == np.uint8
    assert loaded.train.labels.dtype == loaded.train.indices.dtype == np.int64
    assert loaded.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert loaded.train.indices.tolist() == list(range(12))
    assert loaded.test.images.shape == (6, 32, 32, 3)
    assert loaded.test.indices.tolist() == list(range(6))
    np.testing.assert_array_equal(
        loaded.train.images[7], np.asarray(Image.open(tmp_path / "images/train/bee/3.png"))
    )


def test_all_processes_map_the_same_files_read_only(tmp_path, image_tree):
    decoded.prepare(FOLDER, image_tree(tmp_path))
    code = """
        loaded = load(dataset, directory)
        files = [a.filename for s in (loaded.train, loaded.test) for a in (s.images, s.labels)]
        print(json.dumps([loaded.content, [[str(f), os.stat(f).st_ino] for f in files]]))
    """
    first, second = (output_of(process) for process in [python(code, tmp_path), python(code, tmp_path)])
    assert first == second
    loaded = decoded.load(FOLDER, tmp_path)
    for split in loaded.train, loaded.test:
        for array in split.images, split.labels:
            assert isinstance(array, np.memmap)
            assert array.mode == "r"
            assert not array.flags.writeable
            assert str(array.filename) in first


def test_mean_and_deviation_are_those_of_the_used_training_images(tmp_path, image_tree):
    image_tree(tmp_path, train=200, side=8)
    dataset = choice(image_size=8, train_size=300)
    decoded.prepare(dataset, tmp_path)
    loaded = decoded.load(dataset, tmp_path)
    used = loaded.train.images[loaded.train.indices] / 255.0
    np.testing.assert_allclose(
        loaded.mean, used.mean(axis=(0, 1, 2)), rtol=1e-12
    )  # two sums in fp64 differ by less
    np.testing.assert_allclose(loaded.std, used.std(axis=(0, 1, 2)), rtol=1e-12)
    everything = choice(image_size=8)
    assert decoded.load(everything, tmp_path).mean != loaded.mean


def test_a_constant_channel_has_deviation_one(tmp_path, image_tree):
    image_tree(tmp_path, classes=("ant",), train=1, test=1)
    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    pixels[:, :, 1] = 51
    Image.fromarray(pixels).save(tmp_path / "images/train/ant/0.png")
    decoded.prepare(FOLDER, tmp_path)
    loaded = decoded.load(FOLDER, tmp_path)
    assert loaded.mean[1] == 0.2
    assert loaded.std[1] == 1.0
    assert loaded.std[0] < 1.0


def test_a_subset_is_balanced_fixed_and_part_of_every_larger_one(tmp_path, image_tree):
    image_tree(tmp_path, train=8)
    decoded.prepare(FOLDER, tmp_path)
    chosen = []
    for size in 3, 6, 12, 24:
        split = decoded.load(choice(train_size=size), tmp_path).train
        assert np.bincount(split.labels[split.indices]).tolist() == [size // 3] * 3
        assert (np.diff(split.indices) > 0).all()
        chosen.append(set(split.indices.tolist()))
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    assert sorted(chosen[1]) == [1, 6, 10, 11, 20, 22]
    assert len(decoded.load(choice(test_size=3), tmp_path).test.indices) == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"train_size": 10}, "train_size 10 is not a multiple of the 3 classes; use 9 or 12"),
        ({"train_size": 2}, "train_size 2 is not a multiple of the 3 classes; use 3"),
        ({"test_size": 7}, "test_size 7 is not a multiple of the 3 classes; use 6 or 9"),
        ({"test_size": 9}, "test_size 9 needs 3 images of each class, and 'ant' has 2; use at most 6"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_one_that_can(tmp_path, image_tree, options, complaint):
    image_tree(tmp_path)
    for use in decoded.prepare, decoded.load:
        with pytest.raises(DataError) as caught:
            use(choice(**options), tmp_path)
        assert str(caught.value) == complaint


def test_sizes_share_one_decoded_set_and_other_options_do_not(tmp_path, image_tree):
    image_tree(tmp_path)
    said = []
    for dataset in FOLDER, choice(train_size=6), choice(test_size=3, train_size=3):
        decoded.prepare(dataset, tmp_path, said.append)
    assert len(said) == 1
    decoded.prepare(choice(image_size=16), tmp_path, said.append)
    assert len(said) == 2
    contents = {decoded.load(dataset, tmp_path).content for dataset in (FOLDER, choice(train_size=6))}
    assert len(contents) == 1
    assert decoded.load(choice(image_size=16), tmp_path).content not in contents


def test_the_content_hash_depends_on_pixels_labels_and_names_and_on_nothing_else(tmp_path, image_tree):
    def content(name, change=lambda tree: None):
        change(image_tree(tmp_path / name) / "images")
        decoded.prepare(FOLDER, tmp_path / name)
        return decoded.load(FOLDER, tmp_path / name).content

    def rename_a_class(tree):
        for split in "train", "test":
            (tree / split / "ant").rename(tree / split / "asp")

    def exchange_two(tree):
        (tree / "train/ant/3.png").rename(tree / "train/ant/x.png")
        (tree / "train/bee/0.png").rename(tree / "train/ant/3.png")
        (tree / "train/ant/x.png").rename(tree / "train/bee/0.png")

    def move_to_the_other_class(tree):
        (tree / "train/bee/0.png").rename(tree / "train/ant/9.png")

    first = content("first")
    assert len(first) == 64
    assert content("second", lambda tree: touch(tree / "train/ant/0.png")) == first
    changed = {
        content(change.__name__, change) for change in (rename_a_class, exchange_two, move_to_the_other_class)
    }
    assert len(changed | {first}) == 4


def test_what_is_not_prepared_is_not_loaded(tmp_path, image_tree):
    """The command that is named does it."""
    directory = image_tree(tmp_path)
    with pytest.raises(DataError, match=r"decoded/folder/images/32: not decoded yet") as caught:
        decoded.load(FOLDER, directory)

    _, _, command = str(caught.value).partition("not decoded yet; run: ")
    program, *arguments = shlex.split(command)
    assert program == "normbench"
    assert subprocess.run([sys.executable, "-m", "normbench", *arguments]).returncode == 0
    decoded.load(FOLDER, directory)


def test_preparing_again_does_nothing(tmp_path, image_tree, monkeypatch):
    decoded.prepare(FOLDER, image_tree(tmp_path))
    monkeypatch.setattr(Cache, "write", lambda *_: pytest.fail("decoded again"))
    decoded.prepare(FOLDER, tmp_path)


def test_a_changed_tree_is_decoded_anew_and_the_former_set_stays_mapped(tmp_path, image_tree):
    decoded.prepare(FOLDER, image_tree(tmp_path))
    former = decoded.load(FOLDER, tmp_path)
    pixels = former.train.images[0].copy()
    shutil.copy(tmp_path / "images/train/cow/0.png", tmp_path / "images/train/ant/0.png")
    touch(tmp_path / "images/train/ant/0.png")
    decoded.prepare(FOLDER, tmp_path)
    latter = decoded.load(FOLDER, tmp_path)
    assert latter.content != former.content
    np.testing.assert_array_equal(latter.train.images[0], latter.train.images[8])
    np.testing.assert_array_equal(former.train.images[0], pixels)
    assert len(list(cache_of(tmp_path).glob("*.bin"))) == 4


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
@pytest.mark.parametrize("damage", ["flip", "shorten", "remove"])
def test_a_damaged_file_is_detected_and_repaired(tmp_path, image_tree, name, damage):
    decoded.prepare(FOLDER, image_tree(tmp_path))
    before = decoded.load(FOLDER, tmp_path)
    (path,) = cache_of(tmp_path).glob(f"{name}-*.bin")
    if damage == "flip":
        flip(path, path.stat().st_size // 2)
    elif damage == "shorten":
        content = path.read_bytes()
        path.unlink()  # a map of a file that shrinks would take the process down
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"damaged \(.*; 'normbench data' decodes it again") as caught:
        decoded.load(FOLDER, tmp_path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    said = []
    decoded.prepare(FOLDER, tmp_path, said.append)
    assert "damaged" in said[0]
    after = decoded.load(FOLDER, tmp_path)
    assert after.content == before.content
    assert len(after.train.images) == 12


def test_no_flipped_bit_of_the_index_gives_other_data(tmp_path, image_tree):
    decoded.prepare(FOLDER, image_tree(tmp_path, side=4))
    index = cache_of(tmp_path) / "index.json"
    whole, before = index.read_bytes(), decoded.load(FOLDER, tmp_path)
    refused = 0
    for position in range(len(whole)):
        flip(index, position)
        try:
            after = decoded.load(FOLDER, tmp_path)
        except DataError:
            refused += 1
        else:
            assert (after.content, after.classes) == (before.content, before.classes)
            assert after.train.labels.tobytes() == before.train.labels.tobytes()
        index.write_bytes(whole)
    assert refused > len(whole) / 2
    index.write_bytes(b"")
    decoded.prepare(FOLDER, tmp_path)
    assert index.read_bytes() == whole


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_no_set_that_is_not_whole(tmp_path, image_tree):
    """SIGKILL just before the n-th rename or flush to disk, for every n of a decoding."""
    image_tree(tmp_path)
    code = """
        def kill_at(n):
            for name in ("replace", "fsync"):
                def counted(*arguments, original=getattr(os, name)):
                    global calls
                    calls += 1
                    if calls > n:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*arguments)
                setattr(os, name, counted)

        outcomes, n = [], 0
        while True:
            calls = 0
            child = os.fork()
            if child == 0:
                kill_at(n)
                prepare(dataset, directory)
                os._exit(0)
            if os.waitpid(child, 0)[1] == 0:
                break
            try:
                outcomes.append(load(dataset, directory).content)
            except DataError as error:
                outcomes.append("not decoded" if "not decoded yet" in str(error) else str(error))
            n += 1
        print(json.dumps(outcomes + [load(dataset, directory).content]))
    """
    *killed, whole = json.loads(output_of(python(code, tmp_path)))
    assert len(killed) == 15  # for each of five files: its bytes flushed, renamed, its folder flushed
    assert killed[:14] == ["not decoded"] * 14
    assert killed[14] == whole
    suffixes = sorted(path.suffix for path in cache_of(tmp_path).iterdir())
    assert suffixes == ["", *4 * [".bin"], ".json"]


def test_what_a_killed_process_left_over_is_cleaned_up(tmp_path, image_tree):
    cache_of(image_tree(tmp_path)).mkdir(parents=True)
    left_over = [
        cache_of(tmp_path) / name for name in (".train_images-x.tmp", "train_images-0123456789abcdef.bin")
    ]
    for path in left_over:
        path.write_bytes(b"half")
    decoded.prepare(FOLDER, tmp_path)
    assert not any(path.exists() for path in left_over)


def test_two_processes_at_once_decode_once(tmp_path, image_tree):
    """The first is held inside its decoding until the second reports that it waits."""
    image_tree(tmp_path)
    code = """
        def say(line):
            print(line, flush=True)
            if "images decoded" in line:
                input()
        prepare(dataset, directory, say)
        print(load(dataset, directory).content)
    """
    first = python(code, tmp_path)
    assert "18 of 18 images decoded" in first.stdout.readline()
    second = python(code, tmp_path)
    assert "waiting for another process" in second.stdout.readline()
    content, *_ = first.communicate("go on\n", timeout=60)
    assert output_of(second) == content
    assert (first.returncode, len(content)) == (0, 65)


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_leaves_no_set_and_no_temporary_file(tmp_path, image_tree, monkeypatch, function):
    image_tree(tmp_path)
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, function, fail)
        with pytest.raises(OSError, match="No space left"):
            decoded.prepare(FOLDER, tmp_path)
    left = {path.name for path in cache_of(tmp_path).iterdir()}
    assert left <= {".lock"}  # which some versions of filelock take away
    decoded.prepare(FOLDER, tmp_path)
    assert len(decoded.load(FOLDER, tmp_path).train.images) == 12


@pytest.mark.parametrize("name", ["with space", "Ünïcødé — ☃", "a" * 200 + "/" + "b" * 200])
def test_any_path_will_do(tmp_path, image_tree, name):
    directory = image_tree(tmp_path / name)
    decoded.prepare(FOLDER, directory)
    assert len(decoded.load(FOLDER, directory).train.images) == 12


def test_where_data_lie_by_default(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("NORMBENCH_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert decoded.default_directory() == Path("/home/someone/.cache/normbench")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")  # as the XDG specification says
    assert decoded.default_directory() == Path("/home/someone/.cache/normbench")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert decoded.default_directory() == Path("/caches/normbench")
    monkeypatch.setenv("NORMBENCH_DATA", "~/data")
    assert decoded.default_directory() == Path("/home/someone/data")


def test_torch_is_not_needed_to_load():
    code = (
        "loaded = [m for m in sys.modules if m.partition('.')[0] in ('torch', 'torchvision')]; print(loaded)"
    )
    assert output_of(python(code, ".")) == "[]\n"


# ---- validation


def held_out(directory, **options):
    dataset = choice(image_size=8, **options)
    decoded.prepare(dataset, directory)
    loaded = decoded.load(dataset, directory)
    return loaded, {name: set(getattr(loaded, name).indices.tolist()) for name in ("train", "validation")}


def test_validation_images_are_balanced_and_taken_from_the_training_images(tmp_path, image_tree):
    image_tree(tmp_path, train=20, side=8)
    loaded, sets = held_out(tmp_path, validation_size=15)
    assert sets["train"] | sets["validation"] == set(range(60))
    assert not sets["train"] & sets["validation"]
    assert np.bincount(loaded.validation.labels[loaded.validation.indices]).tolist() == [5] * 3
    assert loaded.validation.images is loaded.train.images
    assert loaded.validation.indices.tolist() == sorted(sets["validation"])
    without = decoded.load(choice(image_size=8), tmp_path)
    assert without.validation is None
    assert without.content == loaded.content


def test_validation_images_depend_on_nothing_but_the_data_and_their_number(tmp_path, image_tree):
    image_tree(tmp_path, train=20, side=8)
    _, whole = held_out(tmp_path, validation_size=15)
    _, fewer = held_out(tmp_path, validation_size=6)
    _, part = held_out(tmp_path, validation_size=15, train_size=45)
    _, small = held_out(tmp_path, validation_size=15, train_size=30, test_size=3)
    assert whole["validation"] == part["validation"] == small["validation"] > fewer["validation"]
    assert whole["train"] > part["train"] > small["train"]
    assert (len(part["train"]), len(small["train"])) == (30, 15)
    selected = set(decoded.load(choice(image_size=8, train_size=45), tmp_path).train.indices.tolist())
    assert part["train"] | part["validation"] == selected


def test_mean_deviation_and_whitening_leave_validation_images_out(tmp_path, image_tree):
    image_tree(tmp_path, train=20, side=8)
    loaded, _ = held_out(tmp_path, validation_size=15)
    used = loaded.train.images[loaded.train.indices] / 255.0
    np.testing.assert_allclose(loaded.mean, used.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(loaded.std, used.std(axis=(0, 1, 2)), rtol=1e-12)
    same_number = decoded.load(choice(image_size=8, train_size=45), tmp_path)  # 60 less 15 are 45 others
    assert len(same_number.train.indices) == len(loaded.train.indices)
    assert same_number.selection != loaded.selection
    maps = {decoded.map_file(tmp_path, each, "pca", 0.1) for each in (same_number, loaded)}
    assert len(maps) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation_size": 16}, "validation_size 16 is not a multiple of the 3 classes; use 15 or 18"),
        ({"validation_size": 63}, "validation_size 63 needs 21 images of each class, and 'ant' has 20"),
        ({"validation_size": 60}, "validation_size 60 leaves no image of 'ant' for training"),
    ],
)
def test_sizes_that_leave_no_split_are_refused(tmp_path, image_tree, options, words):
    image_tree(tmp_path, train=20, side=8)
    with pytest.raises(DataError, match=words):
        decoded.prepare(choice(image_size=8, **options), tmp_path)


def test_the_numbers_of_a_data_set_count_validation_images_apart(tmp_path):
    dataset = Trial.model_validate({"dataset": {"name": "shapes", "validation_size": 1000}}).dataset
    assert decoded.info(dataset, tmp_path) == (10, 32, 5000, 2000, 1000)
