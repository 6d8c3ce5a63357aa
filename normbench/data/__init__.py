"""The data sets. ONE FILE = ONE DATASET; this table lists them all."""

from normbench.lookup import Entry, Table, count, text

SIZES = {
    "train_size": count(None, "use this many training images, the same number of each class"),
    "test_size": count(None, "use this many test images, the same number of each class"),
}
FOLDER = text(
    "images",
    "name of the tree below the data directory that holds train/<class>/… and test/<class>/…",
    pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
)

DATASETS: Table[Entry] = Table(
    "dataset",
    Entry("shapes", "ten drawn shapes, 32×32 RGB, made by code; nothing is downloaded", "normbench.data.shapes:decode", SIZES),
    Entry("cifar10", "CIFAR-10 (Krizhevsky 2009), downloaded by torchvision", "normbench.data.cifar:decode_cifar10", SIZES),
    Entry("cifar100", "CIFAR-100 (Krizhevsky 2009), downloaded by torchvision", "normbench.data.cifar:decode_cifar100", SIZES),
    Entry(
        "folder",
        "any tree of image files, train/<class>/… and test/<class>/…",
        "normbench.data.folder:decode",
        {"folder": FOLDER, "image_size": count(32, "side of the square the images are brought to, in pixels")} | SIZES,
    ),
)
