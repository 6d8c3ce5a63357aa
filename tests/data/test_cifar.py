import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
import warnings
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from normbench.config.catalog.datasets import DataError
from normbench.config.trial import Trial
from normbench.data import cifar
from normbench.data import dataset as decoded

COUNT = 6  # images a batch file
NAMES = b"ant", b"bee", b"cow"


RECONSTRUCT = np.zeros(1).__reduce__()[0]


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote at protocol 2: text as byte strings, numpy's names as they were then."""

    def save_bytes(self, value):
        content = value.encode("ascii") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    def save_numpy_name(self, value):
        name = "numpy.core.multiarray\n_reconstruct" if value is RECONSTRUCT else f"numpy\n{value.__name__}"
        self.write(f"c{name}\n".encode())
        self.memoize(value)

    dispatch = MappingProxyType(
        pickle._Pickler.dispatch
        | {bytes: save_bytes, str: save_bytes, type: save_numpy_name, type(RECONSTRUCT): save_numpy_name}
    )


def pickled(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def batch(seed, key=b"labels", **changes):
    random = np.random.RandomState(seed)
    data = random.randint(0, 256, (COUNT, 3072)).astype(np.uint8)
    labels = [number % len(NAMES) for number in range(COUNT)]
    return {b"batch_label": b"a batch", key: labels, b"data": data, b"filenames": [b"x.png"] * COUNT} | {
        name.encode(): value for name, value in changes.items()
    }


def contents(**changed):
    files = {
        "data_batch_1": pickled(batch(1)),
        "data_batch_2": pickled(batch(2)),
        "test_batch": pickled(batch(3)),
        "batches.meta": pickled(
            {b"num_cases_per_batch": COUNT, b"label_names": list(NAMES), b"num_vis": 3072}
        ),
    }
    return files | changed


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def release_of(files):
    return cifar.Release(
        url="http://127.0.0.1:9/made-up.tar.gz",
        archive="made-up.tar.gz",
        archive_sha256="0" * 64,
        folder="made-up-batches",
        train=("data_batch_1", "data_batch_2"),
        test=("test_batch",),
        meta="batches.meta",
        sha256={name: sha256(content) for name, content in files.items()},
        labels_key=b"labels",
        names_key=b"label_names",
    )


def unpack(files, directory):
    """The release of ``files``, which then lie in ``directory`` as if unpacked by hand."""
    release = release_of(files)
    (directory / release.folder).mkdir(parents=True)
    for name, content in files.items():
        (directory / release.folder / name).write_bytes(content)
    return release


def packed(files, *extra):
    """A gzipped archive as bytes; ``extra`` members come first."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for member in extra:
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(f"made-up-batches/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def read(release, directory):
    return cifar.read(release, directory, lambda _: None)


def test_pixels_labels_and_names_are_read(tmp_path):
    arrays = read(unpack(contents(), tmp_path), tmp_path)
    assert arrays.classes == ("ant", "bee", "cow")
    assert arrays.train_images.shape == (2 * COUNT, 32, 32, 3)
    assert arrays.test_images.shape == (COUNT, 32, 32, 3)
    assert arrays.train_labels.tolist() == [0, 1, 2] * 4
    assert arrays.train_labels.dtype == np.int64
    second = batch(2)[b"data"]
    assert arrays.train_images[COUNT + 1, 4, 7].tolist() == [
        second[1, 1024 * channel + 32 * 4 + 7] for channel in range(3)
    ]


def test_the_test_pickles_are_of_the_official_kind():
    """Byte strings, the old numpy names, protocol 2; numpy itself reads the same array out of them."""
    content = pickled(batch(1))
    assert content.startswith(b"\x80\x02}")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"cnumpy\ndtype\n" in content
    assert b"_codecs" not in content
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy has moved the old name
        read = pickle.loads(content, encoding="latin1")
    np.testing.assert_array_equal(read["data"], batch(1)[b"data"])


def test_an_array_in_fortran_order_is_read_the_same(tmp_path):
    files = contents(data_batch_1=pickled(batch(1, data=np.asfortranarray(batch(1)[b"data"]))))
    np.testing.assert_array_equal(
        read(unpack(files, tmp_path / "a"), tmp_path / "a").train_images,
        read(unpack(contents(), tmp_path / "b"), tmp_path / "b").train_images,
    )


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def change_one_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [shorten, change_one_byte, empty])
@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_damaged_file_is_named_with_both_hashes_and_the_fix(tmp_path, damage, name):
    release = unpack(contents(), tmp_path)
    path = tmp_path / release.folder / name
    damage(path)
    with pytest.raises(DataError) as caught:
        read(release, tmp_path)
    message = str(caught.value)
    assert message.startswith(
        f"{path}: expected sha256 {release.sha256[name]}, found {sha256(path.read_bytes())}"
    )
    assert f"delete {path.parent}" in message
    assert "\n" not in message


def test_a_file_of_any_size_is_refused_before_it_is_read(tmp_path):
    release = unpack(contents(), tmp_path)
    with (tmp_path / release.folder / "data_batch_2").open("wb") as file:
        file.truncate(10**12)  # takes no space
    with pytest.raises(DataError, match="data_batch_2: 1000000000000 bytes, more than any official file has"):
        read(release, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    release = unpack(contents(), tmp_path)
    (tmp_path / release.folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match="data_batch_2: missing"):
        read(release, tmp_path)


def malicious(target):
    """Pickles that create ``target`` if anything they name is called, by three ways to name it."""
    command = f"touch '{target}'".encode()
    return {
        "a global": b"\x80\x02cos\nsystem\nU" + bytes([len(command)]) + command + b"\x85R.",
        "a builtin": b"\x80\x02c__builtin__\neval\nU" + bytes([len(command)]) + command + b"\x85R.",
        "a name from the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93U"
        + bytes([len(command)])
        + command
        + b"\x85R.",
        "a new object": b"\x80\x02csubprocess\nPopen\nU" + bytes([len(command)]) + command + b"\x85\x81.",
    }


@pytest.mark.parametrize("kind", malicious(""))
def test_a_malicious_pickle_is_refused_by_its_hash_before_it_is_parsed(tmp_path, monkeypatch, kind):
    release = unpack(contents(), tmp_path)
    (tmp_path / release.folder / "data_batch_1").write_bytes(malicious(tmp_path / "owned")[kind])
    monkeypatch.setattr(cifar, "_Reader", lambda *_, **__: pytest.fail("parsed before its hash was checked"))
    with pytest.raises(DataError, match="expected sha256"):
        read(release, tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", malicious(""))
def test_a_malicious_pickle_of_the_right_hash_is_refused_by_the_reader(tmp_path, kind):
    content = malicious(tmp_path / "owned")[kind]
    release = unpack(contents(data_batch_1=content), tmp_path)
    with pytest.raises(DataError, match=r"data_batch_1: refused, not a CIFAR file \(it refers to"):
        read(release, tmp_path)
    assert not (tmp_path / "owned").exists()
    if kind == "a global":  # the test's own weapon is sharp
        pickle.loads(content)
        assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([1, 2], "not a dictionary"),
        (batch(1, labels=[0, 1, 2, 0, 1, 3]), "expected labels from 0 to 2, found 3"),
        (batch(1, labels=[0, 1, 2, 0, 1, -1]), "found -1"),
        (batch(1, labels=[0, 1, 2, 0, 1, True]), "found True"),
        (batch(1, labels=[0, 1]), "expected a list of 6 labels"),
        (batch(1, labels=None), "expected a list of 6 labels"),
        (batch(1, data=None), "expected a uint8 array"),
        (batch(1, data=np.zeros((COUNT, 3072), np.float32)), "expected a uint8 array"),
        (batch(1, data=np.zeros((COUNT, 3071), np.uint8)), r"found shape \(6, 3071\)"),
        (batch(1, data=np.zeros((0, 3072), np.uint8)), r"found shape \(0, 3072\)"),
        (batch(1, data=np.zeros(3072, np.uint8)), "expected a uint8 array"),
    ],
)
def test_a_batch_of_the_wrong_form_is_refused(tmp_path, values, complaint):
    release = unpack(contents(data_batch_2=pickled(values)), tmp_path)
    with pytest.raises(DataError, match=f"data_batch_2: .*{complaint}"):
        read(release, tmp_path)


def test_class_names_of_the_wrong_form_are_refused(tmp_path):
    release = unpack(contents(**{"batches.meta": pickled({b"label_names": [1, 2]})}), tmp_path)
    with pytest.raises(DataError, match=r"batches\.meta: expected a list of class names"):
        read(release, tmp_path)


def test_an_archive_put_there_by_hand_is_read_and_never_unpacked(tmp_path):
    climbing, link = tarfile.TarInfo("../climbed"), tarfile.TarInfo("made-up-batches/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive = packed(contents(), climbing, tarfile.TarInfo("/tmp/absolute"), link)
    release = replace(release_of(contents()), archive_sha256=sha256(archive))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / release.archive).write_bytes(archive)
    assert len(read(release, tmp_path / "data").train_images) == 2 * COUNT
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "data", tmp_path / "data" / release.archive]


def test_a_file_that_is_a_link_or_missing_in_the_archive_is_refused(tmp_path):
    link = tarfile.TarInfo("made-up-batches/test_batch")
    link.type, link.linkname = tarfile.SYMTYPE, "data_batch_1"
    files = contents()
    archive = packed({name: content for name, content in files.items() if name != "test_batch"}, link)
    release = replace(release_of(files), archive_sha256=sha256(archive))
    (tmp_path / release.archive).write_bytes(archive)
    with pytest.raises(DataError, match="does not contain made-up-batches/test_batch"):
        read(release, tmp_path)


def test_a_damaged_archive_is_named_and_left_alone(tmp_path):
    release = release_of(contents())
    (tmp_path / release.archive).write_bytes(b"half an archive")
    with pytest.raises(DataError, match=r"made-up\.tar\.gz: expected sha256 0{64}, found .*delete"):
        read(release, tmp_path)
    assert (tmp_path / release.archive).read_bytes() == b"half an archive"


@pytest.fixture
def served(monkeypatch):
    """A web server that answers with ``content`` and announces ``length`` bytes, at ``url``."""
    answer = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(answer.get("length", len(answer["content"]))))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(answer["content"])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        answer["url"] = f"http://127.0.0.1:{server.server_port}/made-up.tar.gz"
        yield answer
        server.shutdown()
        thread.join()


def test_the_archive_is_downloaded_once(tmp_path, served):
    served["content"] = packed(contents())
    release = replace(release_of(contents()), url=served["url"], archive_sha256=sha256(served["content"]))
    directory = tmp_path / "new" / "data"
    first = read(release, directory)
    assert [path.name for path in directory.iterdir()] == [release.archive]
    served["content"] = b"gone"
    np.testing.assert_array_equal(read(release, directory).train_images, first.train_images)


def test_a_download_cut_in_the_middle_leaves_nothing(tmp_path, served):
    whole = packed(contents())
    served.update(content=whole[:1000], length=len(whole))
    release = replace(release_of(contents()), url=served["url"], archive_sha256=sha256(whole))
    with pytest.raises(
        DataError, match=r"download failed .*; put made-up\.tar\.gz, or its folder made-up-batches"
    ):
        read(release, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_one_line_says_what_to_do_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError) as caught:
        read(release_of(contents()), tmp_path)
    message = str(caught.value)
    assert "download failed" in message
    assert message.endswith(f"put made-up.tar.gz, or its folder made-up-batches, into {tmp_path}")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "key", "batches", "names"),
    [("CIFAR10", b"labels", 5, b"label_names"), ("CIFAR100", b"fine_labels", 1, b"fine_label_names")],
)
def test_the_official_releases_have_a_hash_for_every_file(name, key, batches, names):
    release = cifar.official(name, key)
    assert len(release.train) == batches
    assert release.names_key == names
    assert release.sha256.keys() == {*release.train, *release.test, release.meta}
    assert all(len(sha256) == 64 for sha256 in (release.archive_sha256, *release.sha256.values()))


@pytest.mark.parametrize(("name", "key"), [("cifar10", b"labels"), ("cifar100", b"fine_labels")])
def test_cifar_is_decoded_once_and_needs_its_files_no_more(tmp_path, monkeypatch, name, key):
    files = contents(
        **{
            file: pickled(batch(seed, key=key))
            for seed, file in enumerate(["data_batch_1", "data_batch_2", "test_batch"])
        }
    )
    release = replace(unpack(files, tmp_path), labels_key=key)
    monkeypatch.setattr(cifar, "official", lambda *_: release)
    dataset = Trial.model_validate({"dataset": {"name": name, "train_size": 6}}).dataset
    decoded.prepare(dataset, tmp_path)
    monkeypatch.setattr(cifar, "official", lambda *_: pytest.fail("decoded again"))
    decoded.prepare(dataset, tmp_path)
    loaded = decoded.load(dataset, tmp_path)
    assert loaded.classes == ("ant", "bee", "cow")
    assert np.bincount(loaded.train.labels[loaded.train.indices]).tolist() == [2, 2, 2]
