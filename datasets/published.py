"""The data sets that have a published form: where it is, how large it is, and how its content is recognised.

Content is recognised by what is decoded, not by the wrapping: the SHA-256 of the pixels and labels, or where nobody
has published that (CIFAR-10), the MD5 of the files inside the archive, as torchvision lists them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Facts of one published data set."""

    url: str | None
    """Official address of the archive; None where the data come with a dependency."""
    archive_md5: str | None
    """MD5 of the archive behind `url`."""
    num_classes: int
    num_train: int
    num_test: int
    image_size: int
    """Side of the square images in pixels."""
    content_sha256: str | None
    """SHA-256 over the four array hashes (see `store.content_hash`); None where it is not known."""
    member_md5: dict[str, str] = field(default_factory=dict)
    """MD5 of the archive's files by name, for data whose content hash is not known."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their numbers, where a tree of class folders may stand in for the archive."""


PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        num_classes=10,
        num_train=50_000,
        num_test=10_000,
        image_size=32,
        content_sha256=None,
        member_md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": Published(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        num_classes=100,
        num_train=50_000,
        num_test=10_000,
        image_size=32,
        content_sha256="ceb0b06094d8c2c6b79a7ee82bd5e9e6d7429b9126025907f7e2720ec7d6adf0",
    ),
    # Content hash: all 100,000 + 10,000 JPEGs, decoded by the locked Pillow, classes in the order of their sorted
    # wnids, images in natural order of their names.
    "tiny-imagenet-200": Published(
        url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
        archive_md5="90528d7ca1a48142e341f4ef8d21d0de",
        num_classes=200,
        num_train=100_000,
        num_test=10_000,
        image_size=64,
        content_sha256="323e66a0a73525610e24050c0660e7d35b0e60a622de9de93b4c1092bb5bdd47",
    ),
    "digits": Published(
        url=None,
        archive_md5=None,
        num_classes=10,
        num_train=1_257,
        num_test=540,
        image_size=8,
        content_sha256="751b9271ade77d3c71ebc93265d5a54a44be4d23ff0c5da4e683b2689f271ccb",
    ),
}
