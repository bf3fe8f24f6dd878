"""The files of the fleet tasks that learn from real data, with their checksums; `models/datasets.py` finds them.

Heart disease: Janosi, Steinbrunn, Pfisterer and Detrano, UCI Machine Learning Repository 45, CC BY 4.0. Coupons: Wang
et al., repository 603, CC BY 4.0, with a number for each person. MNIST: LeCun et al., CC BY-SA 3.0, with the writers'
numbers of QMNIST (Yadav and Bottou, 2019, BSD 3-clause). The last two are put together and published by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.datasets import DataFile, data_file

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"

HOSPITALS: Mapping[str, str] = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
"""The hospitals' files by name: their SHA-256."""

FLEET_FILES: Mapping[str, DataFile] = {
    file.name: file
    for file in (
        *(
            DataFile(f"{UCI}/processed.{name}.data", sha256, size_mb=0.02, folder="heart_disease")
            for name, sha256 in HOSPITALS.items()
        ),
        DataFile(
            "coupon.parquet",
            "d28810d4cc71d3245c51f88d39590e6cc23d8fe16b8e618b4b6d5f666e06c4a3",
            size_mb=0.04,
            folder="coupon_triggering",
        ),
        DataFile("mnist.npz", "3def3b07c24b221d1205be3c04b013fddef3d3105e01e7ec254171adf6c1ea8e", size_mb=11.3),
    )
}


def fleet_file(name: str) -> Path:
    """The path of a file whose content has been verified; raises what `data_file` does."""
    return data_file(name, FLEET_FILES)
